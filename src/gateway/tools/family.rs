//! How families of models write the functions that they call. A model's family is found in its chat template, which asks
//! the model for calls in the form that it has learned.

/// One way to write calls.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Family {
    pub name: &'static str,
    /// Texts that all stand in the family's templates, and texts that stand in none of them.
    signs: &'static [&'static str],
    not: &'static [&'static str],
    /// What comes before a call, or before a list of them, whose bracket may be part of it.
    pub open: &'static str,
    /// A call may come without `open` where it is the first that is said.
    pub open_is_optional: bool,
    /// What comes before another call, where that is not `open` again.
    pub again: Option<&'static str>,
    /// What comes after it, and what else may stand between calls and after the last.
    pub close: &'static str,
    pub passed_over: &'static [&'static str],
    pub form: Form,
    /// The key of the arguments; the name's is `name` everywhere.
    pub arguments: &'static str,
    /// White space that the models put inside `open` and `close`.
    pub inner: &'static str,
    /// What they put between two calls.
    pub between: &'static str,
    /// Ids of nine letters and digits: the templates refuse others.
    pub short_ids: bool,
}

/// What stands between `open` and `close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Form {
    /// One object with a name and arguments.
    Object,
    /// A list of such objects.
    List,
    /// The name, this mark, and the arguments; or a word, this mark, the name, and the arguments in a fence.
    Name(&'static str),
    /// The name and each argument in an element of its own.
    Elements(&'static Elements),
}

/// The marks around a name, and around the key and the value of each argument.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Elements {
    pub name_open: &'static str,
    /// Nothing where the name ends with its line.
    pub name_close: &'static str,
    pub key_open: &'static str,
    pub key_close: &'static str,
    /// Nothing where the value follows the key at once.
    pub value_open: &'static str,
    pub value_close: &'static str,
    /// After the last argument.
    pub end: &'static str,
    /// Values stand in lines of their own, whose breaks are not part of them.
    pub in_lines: bool,
}

/// What some put around arguments.
pub(super) const FENCE: &str = "```";

const FAMILIES: &[Family] = &[
    // Hermes 2 Pro and later; Qwen 2.5 and 3.
    HERMES,
    // Llama 3.1 to 3.3: custom tools as JSON.
    Family {
        name: "llama3",
        signs: &["\"parameters\": dictionary of argument name"],
        not: &[],
        open: "<|python_tag|>",
        open_is_optional: true,
        again: None,
        close: "",
        passed_over: &[],
        form: Form::Object,
        arguments: "parameters",
        inner: "",
        between: "; ",
        short_ids: false,
    },
    // Mistral since the tokenizer's version 11.
    Family {
        name: "mistral-args",
        signs: &["[TOOL_CALLS]", "[ARGS]"],
        not: &[],
        open: "[TOOL_CALLS]",
        open_is_optional: false,
        again: None,
        close: "",
        passed_over: &[],
        form: Form::Name("[ARGS]"),
        arguments: "arguments",
        inner: "",
        between: "",
        short_ids: true,
    },
    // Mistral before that.
    Family {
        name: "mistral",
        signs: &["[TOOL_CALLS]"],
        not: &["[ARGS]"],
        open: "[TOOL_CALLS]",
        open_is_optional: false,
        again: None,
        close: "",
        passed_over: &[],
        form: Form::List,
        arguments: "arguments",
        inner: " ",
        between: ", ",
        short_ids: true,
    },
    // Qwen3-Coder, and Qwen since 3.5.
    Family {
        name: "qwen3-coder",
        signs: &["<tool_call>", "<function=", "<parameter="],
        form: Form::Elements(&Elements {
            name_open: "<function=",
            name_close: ">",
            key_open: "<parameter=",
            key_close: ">",
            value_open: "",
            value_close: "</parameter>",
            end: "</function>",
            in_lines: true,
        }),
        not: &[],
        ..HERMES
    },
    // GLM 4.5 and 4.6.
    Family {
        name: "glm",
        signs: &["<tool_call>", "<arg_key>", "<arg_value>"],
        form: Form::Elements(&Elements {
            name_open: "",
            name_close: "",
            key_open: "<arg_key>",
            key_close: "</arg_key>",
            value_open: "<arg_value>",
            value_close: "</arg_value>",
            end: "</tool_call>",
            in_lines: false,
        }),
        not: &[],
        inner: "",
        ..HERMES
    },
    // Phi-4-mini as templates have it that ask for the word which it was trained to say; vLLM's examples have one.
    Family {
        name: "phi4-functools",
        signs: &["functools["],
        not: &[],
        open: "functools[",
        close: "",
        form: Form::List,
        inner: "",
        between: ", ",
        ..HERMES
    },
    // Phi-4-mini as Microsoft's template has it: a list; and as others have it who ask for objects.
    Family {
        name: "phi4",
        signs: &["<|tool|>"],
        not: &["<|tool_call|>"],
        open: "<|tool_call|>",
        close: "<|/tool_call|>",
        form: Form::List,
        inner: "",
        between: ", ",
        ..HERMES
    },
    Family {
        name: "phi4-object",
        signs: &["<|tool|>", "<|tool_call|>"],
        not: &[],
        open: "<|tool_call|>",
        close: "<|/tool_call|>",
        inner: "",
        between: "",
        ..HERMES
    },
    // DeepSeek V3 and R1. Their own templates do not show functions to the model; those that do have the word `tools`.
    Family {
        name: "deepseek",
        signs: &["<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "```json", "tools"],
        passed_over: &[FENCE, "<｜tool▁calls▁end｜>"],
        not: &[],
        ..DEEPSEEK
    },
    // DeepSeek V3.1 and later.
    Family { name: "deepseek-v3.1", ..DEEPSEEK },
];

const HERMES: Family = Family {
    name: "hermes",
    signs: &["<tool_call>"],
    not: &["<function=", "<arg_key>"],
    open: "<tool_call>",
    open_is_optional: false,
    again: None,
    close: "</tool_call>",
    passed_over: &[],
    form: Form::Object,
    arguments: "arguments",
    inner: "\n",
    between: "\n",
    short_ids: false,
};

const DEEPSEEK: Family = Family {
    name: "deepseek-v3.1",
    signs: &["<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "tools"],
    not: &["```json"],
    open: "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
    again: Some("<｜tool▁call▁begin｜>"),
    close: "<｜tool▁call▁end｜>",
    passed_over: &["<｜tool▁calls▁end｜>"],
    form: Form::Name("<｜tool▁sep｜>"),
    inner: "",
    between: "",
    ..HERMES
};

/// The family that a chat template was written for; none when it knows no tools, or in a way that is not known here.
pub(in crate::gateway) fn family_of(template: &str) -> Option<&'static Family> {
    let stands = |text: &&str| template.contains(*text);
    FAMILIES.iter().find(|f| f.signs.iter().all(stands) && !f.not.iter().any(stands))
}

impl Family {
    /// Whether `open` has the bracket of a list in it, so that its first object follows.
    pub fn opens_list(&self) -> bool {
        self.form == Form::List && self.open.ends_with('[')
    }

    /// Every mark, some of which are control tokens in a model's vocabulary.
    pub fn marks(&self) -> impl Iterator<Item = &'static str> {
        let inner = match self.form {
            Form::Name(mark) => vec![mark],
            // What is inside of elements is letters in the vocabularies of these families.
            Form::Object | Form::List | Form::Elements(_) => vec![],
        };
        let around = parts(self.open).chain([self.close]).chain(self.passed_over.iter().copied());
        // A fence is letters everywhere.
        around.chain(inner).filter(|mark| !mark.is_empty() && *mark != FENCE)
    }
}

/// The single marks of which one is made up.
pub(super) fn parts(mark: &'static str) -> impl Iterator<Item = &'static str> {
    let split = mark.find("><").map_or(mark.len(), |at| at + 1);
    [&mark[..split], &mark[split..]].into_iter().filter(|part| !part.is_empty())
}

#[cfg(test)]
pub(super) fn by_name(name: &str) -> &'static Family {
    FAMILIES.iter().find(|f| f.name == name).expect("a family")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_found_in_its_templates_words() {
        for (template, wanted) in [
            ("within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{\"name\": <function-name>", Some("hermes")),
            ("<tool_call>\\n<function=example>\\n<parameter=a>", Some("qwen3-coder")),
            ("<tool_call>{{ tc.name }}<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>", Some("glm")),
            ("'<|tool|>' + message['tools'] + '<|/tool|>'", Some("phi4")),
            ("a list such as functools[{\"name\": …, \"arguments\": …}] <|tool|>", Some("phi4-functools")),
            ("'<|tool|>' + (tool['function'] | tojson) + '<|/tool|>' <|tool_call|>{", Some("phi4-object")),
            (
                "{% for tool in tools %}<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + name + '```json'",
                Some("deepseek"),
            ),
            (
                "{% for tool in tools %}<｜tool▁call▁begin｜>'+ name + '<｜tool▁sep｜>' + arguments",
                Some("deepseek-v3.1"),
            ),
            // It knows calls, but shows no functions to the model.
            ("<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + name + '```json'", None),
            (
                "'Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its value}.'",
                Some("llama3"),
            ),
            ("{{- \"[TOOL_CALLS] [\" }}{{ tool_call.function | tojson }}", Some("mistral")),
            ("{{ '[TOOL_CALLS]' + tool['function']['name'] + '[ARGS]' + arguments }}", Some("mistral-args")),
            ("{{ messages[0].content }}", None),
        ] {
            assert_eq!(family_of(template).map(|f| f.name), wanted, "{template}");
        }
    }
}
