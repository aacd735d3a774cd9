// openai-node against the gateway: chats, streams, refusals, retries, time-outs.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { appendFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI from "openai";
import { VERSION } from "openai/version";

const KEY = "a-key-for-clients";
const messages = [{ role: "user", content: "Hello! Who are you?" }];
const short = { model: "wren", messages, temperature: 0, max_tokens: 40 };
const long = { model: "wren", messages, max_tokens: 1900, ignore_eos: true };

// What was sent and taken, for check_requests.py.
async function recorded(url, options) {
  const response = await fetch(url, options);
  const file = process.env.RECORDED_REQUESTS;
  if (file && options.method?.toUpperCase() === "POST" && response.status === 200) {
    const line = { path: new URL(url).pathname, body: JSON.parse(options.body || "{}") };
    appendFileSync(file, `${JSON.stringify(line)}\n`);
  }
  return response;
}

async function withServer(settings, run) {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("ORCH_")));
  const ours = { listen: "127.0.0.1:0", gateway_listen: "127.0.0.1:0", api_keys: KEY, ...settings };
  for (const [name, value] of Object.entries(ours)) env[`ORCH_${name.toUpperCase()}`] = String(value);
  const child = spawn(process.env.ORCHESTRATORD_BIN, { env, stdio: ["ignore", "pipe", "ignore"] });
  let said = "";
  child.stdout.on("data", (piece) => (said += piece));
  try {
    await until("the gateway's address", () => /gateway .*\/v1\n/.test(said));
    const main = said.match(/address +(http:\S+)/)[1];
    await run({
      client: (options) => new OpenAI({ baseURL: said.match(/gateway +(http:\S+)/)[1], apiKey: KEY, maxRetries: 0, fetch: recorded, ...options }),
      metric: async (name) => {
        const lines = (await (await fetch(`${main}/metrics`)).text()).split("\n");
        return lines.filter((l) => l.startsWith(`${name}{`)).reduce((sum, l) => sum + Number(l.split(" ").pop()), 0);
      },
    });
  } finally {
    child.kill("SIGKILL");
  }
}

async function until(what, holds) {
  for (let i = 0; i < 600; i++) {
    if (await holds()) return;
    await sleep(50);
  }
  throw new Error(`waited in vain for ${what}`);
}

const tests = {
  async "a chat is answered whole, in a stream and by the stream helper alike"({ client }) {
    const whole = await client().chat.completions.create(short);
    const text = whole.choices[0].message.content;
    assert.ok(text && whole.usage.completion_tokens > 0);
    let streamed = "";
    for await (const chunk of await client().chat.completions.create({ ...short, stream: true })) {
      streamed += chunk.choices[0]?.delta?.content ?? "";
    }
    assert.equal(streamed, text);
    assert.equal(await client().chat.completions.stream(short).finalContent(), text);
  },

  async "usage comes last for who asks"({ client }) {
    const chunks = [];
    const options = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await client().chat.completions.create({ ...short, ...options })) chunks.push(chunk);
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.ok(chunks.at(-1).usage.total_tokens > 0);
  },

  async "refusals have their classes, codes and fields"({ client }) {
    const refused = async (kind, code, param, body, options) => {
      const error = await client(options).chat.completions.create(body).then(assert.fail, (e) => e);
      assert.ok(error instanceof kind, String(error));
      assert.deepEqual([error.code, error.param], [code, param]);
    };
    const tools = [{ type: "function", function: { name: "f", parameters: {} } }];
    await refused(OpenAI.BadRequestError, "invalid_value", "tools", { ...short, tools });
    await refused(OpenAI.NotFoundError, "model_not_found", "model", { ...short, model: "gpt-4o" });
    await refused(OpenAI.AuthenticationError, "invalid_api_key", null, short, { apiKey: "sk-wrong" });
  },

  async "a stream that is aborted and a call that times out free the slot"({ client, metric }) {
    const stream = await client().chat.completions.create({ ...long, stream: true });
    for await (const _ of stream) break;
    await until("the slot to be free", async () => (await metric("sequences_running")) === 0);
    const error = await client({ timeout: 300 }).chat.completions.create(long).then(assert.fail, (e) => e);
    assert.ok(error instanceof OpenAI.APIConnectionTimeoutError, String(error));
    await until("the slot to be free", async () => (await metric("sequences_running")) === 0);
  },

  async "functions are called as their schema says, whole and by the helper, and conversations go on"() {
    const template = process.env.CHAT_TEMPLATE;
    await withServer({ chat_template: template }, async ({ client }) => {
      const parameters = {
        type: "object",
        properties: { city: { enum: ["Paris", "Oslo"] } },
        required: ["city"],
        additionalProperties: false,
      };
      const tools = [{ type: "function", function: { name: "weather", strict: true, parameters } }];
      const asked = { ...short, max_tokens: 200, tools, tool_choice: "required" };
      const whole = await client().chat.completions.create(asked);
      const call = whole.choices[0].message.tool_calls[0];
      assert.equal(whole.choices[0].finish_reason, "tool_calls");
      assert.ok(["Paris", "Oslo"].includes(JSON.parse(call.function.arguments).city));
      const streamed = await client().chat.completions.stream(asked).finalChatCompletion();
      assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
      const turns = [...messages, whole.choices[0].message, { role: "tool", tool_call_id: call.id, content: "sunny" }];
      const after = await client().chat.completions.create({ ...short, messages: turns, tools });
      assert.ok(after.choices[0].message.content || after.choices[0].message.tool_calls);
      const called = [];
      const run = (args) => called.push(args.city) && "sunny";
      const given = [{ type: "function", function: { name: "weather", parameters, function: run, parse: JSON.parse } }];
      const choice = { type: "function", function: { name: "weather" } };
      // With a named function the runner stops after its first call.
      const runner = client().chat.completions.runTools({ ...asked, tools: given, tool_choice: choice });
      await runner.done();
      assert.deepEqual(called, [JSON.parse(call.function.arguments).city]);
    });
  },

  async "the SDK's own retries get through a full queue"() {
    await withServer({ slots_max: 1, queue_capacity: 1 }, async ({ client, metric }) => {
      const streams = [];
      for (let i = 0; i < 2; i++) streams.push(await client().chat.completions.create({ ...long, stream: true }));
      await until("a full queue", async () => (await metric("queue_depth")) === 1);
      const full = await client().chat.completions.create(short).then(assert.fail, (e) => e);
      assert.ok(full instanceof OpenAI.RateLimitError && Number(full.headers.get("retry-after-ms")) >= 1);
      const before = await metric("tasks_rejected_total");
      const asked = client({ maxRetries: 50 }).chat.completions.create(short);
      await until("a retry", async () => (await metric("tasks_rejected_total")) > before);
      streams[0].controller.abort();
      assert.ok((await asked).usage.completion_tokens > 0);
      streams[1].controller.abort();
    });
  },
};

await withServer({}, async (shared) => {
  for (const [name, test] of Object.entries(tests)) {
    console.log("openai-node:", name);
    await test(shared);
  }
});
console.log(`openai-node ${VERSION}: ${Object.keys(tests).length} passed on Node ${process.version}`);
