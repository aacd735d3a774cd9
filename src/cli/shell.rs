//! What a shell and a reader of manuals want: `completions` and `man`.

use std::io::Write;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::Failure;

pub fn completions_command() -> Command {
    Command::new("completions")
        .about("Print the completions for a shell")
        .after_help("bash: orchestratord completions bash > /etc/bash_completion.d/orchestratord")
        .arg(
            Arg::new("shell")
                .value_name("SHELL")
                .required(true)
                .value_parser(value_parser!(Shell))
                .help("bash, zsh, fish, elvish or powershell"),
        )
}

pub fn man_command() -> Command {
    Command::new("man").about("Print the manual page: orchestratord man | man -l -")
}

pub fn completions(arguments: &ArgMatches, mut whole: Command) -> Result<(), Failure> {
    let shell = *arguments.get_one::<Shell>("shell").expect("it is required");
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut whole, "orchestratord", &mut text);
    write(&text)
}

pub fn man(whole: Command) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_mangen::Man::new(whole).render(&mut text).map_err(Failure::failed)?;
    write(&text)
}

/// In one piece, so that a reader who goes is noticed and nothing panics.
fn write(text: &[u8]) -> Result<(), Failure> {
    std::io::stdout().lock().write_all(text).map_err(Failure::output)
}
