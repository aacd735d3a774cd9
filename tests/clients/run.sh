#!/usr/bin/env bash
# Other people's clients against the gateway. Needs cargo, and python3 with venv or node with npm (both, to be complete);
# installs the clients, pinned, into the target folder. ORCHESTRATORD_BIN names a binary that exists already.
#   tests/clients/run.sh [python] [node] [litellm] [agents] [webui]
set -euo pipefail
cd "$(dirname "$0")/../.."

wanted=${*:-python node litellm agents webui}
target=$(cargo metadata --no-deps --format-version 1 | grep -o '"target_directory":"[^"]*"' | cut -d'"' -f4)
installed="$target/clients"
mkdir -p "$installed"
if [ -z "${ORCHESTRATORD_BIN:-}" ]; then
  cargo build -p orchestratord --bin orchestratord
  export ORCHESTRATORD_BIN="$target/debug/orchestratord"
fi

run_python() {
  [ -x "$installed/venv/bin/pip" ] || python3 -m venv "$installed/venv"
  "$installed/venv/bin/pip" install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
  for script in openai_python anthropic_python langchain_python zed_python; do
    timeout 300 "$installed/venv/bin/python" "tests/clients/$script.py"
  done
}

run_node() {
  local version=7.57.0
  [ -d "$installed/node_modules/openai" ] || npm install --silent --no-save --no-audit --no-fund --prefix "$installed" "openai@$version"
  # A module is looked up from where the script lies.
  cp tests/clients/*.mjs "$installed/"
  CHAT_TEMPLATE="$PWD/tests/templates/hermes.jinja" timeout 300 node "$installed/openai_node.mjs"
}

# It wants another version of OpenAI's client than the one that is tried above.
run_litellm() {
  [ -x "$installed/litellm/bin/pip" ] || python3 -m venv "$installed/litellm"
  "$installed/litellm/bin/pip" install --quiet --disable-pip-version-check litellm==1.110.2
  timeout 300 "$installed/litellm/bin/python" tests/clients/litellm_python.py
}

# Programs of half a gigabyte.
run_agents() {
  local agents="$installed/agents"
  [ -d "$agents/node_modules/@continuedev/cli" ] || npm install --silent --no-save --no-audit --no-fund --prefix "$agents" \
    @anthropic-ai/claude-code@2.1.197 @openai/codex@0.171.0 @continuedev/cli@1.5.47
  [ -x "$installed/aider/bin/pip" ] || python3 -m venv "$installed/aider"
  "$installed/aider/bin/pip" install --quiet --disable-pip-version-check aider-chat==0.86.2
  ln -sf "$installed/aider/bin/aider" "$agents/node_modules/.bin/aider"
  PATH="$agents/node_modules/.bin:$PATH" timeout 600 python3 tests/clients/agents.py
}

# More than a gigabyte, without what it would run models of its own with, which is several times as much. It starts without.
run_webui() {
  local version=0.12.4 webui="$installed/webui" own='accelerate|einops|faster-whisper|opencv|rapidocr|sentence-transformers|transformers'
  if ! [ -x "$webui/bin/open-webui" ]; then
    # It is for no Python before 3.11 or after 3.12.
    local python=python3
    "$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || python=python3.11
    "$python" -m venv "$webui"
    "$webui/bin/pip" install --quiet --disable-pip-version-check --no-deps "open-webui==$version"
    "$webui/bin/python" -c 'from importlib.metadata import requires; print(*requires("open-webui"), sep="\n")' |
      grep -v 'extra ==' | grep -vE "^($own)" >"$webui/requirements.txt"
  fi
  # It says itself that the rest is not there.
  "$webui/bin/pip" install --quiet --disable-pip-version-check -r "$webui/requirements.txt" 2>"$webui/pip.log" || { cat "$webui/pip.log"; exit 1; }
  timeout 400 "$webui/bin/python" tests/clients/openwebui_python.py
}

export RECORDED_REQUESTS="$installed/requests.jsonl"
rm -f "$RECORDED_REQUESTS"
for client in $wanted; do "run_$client"; done
# What they sent is held against the document, by a validator of Python's.
case " $wanted " in *" python "*) "$installed/venv/bin/python" tests/clients/check_requests.py "$RECORDED_REQUESTS" ;; esac
