//! Models of real shapes with random weights: which there are, and `device model`, which writes one to a file.

use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command, value_parser};
use orchestratord_engine::Model;
use orchestratord_engine::gguf::TensorType;
use orchestratord_engine::testing::{SHAPES, TinyModel};

use crate::cli::Failure;

pub fn command() -> Command {
    let path = Arg::new("file").value_name("FILE").required(true).value_parser(value_parser!(PathBuf));
    Command::new("model")
        .about("Write a model of a known shape with random weights to a GGUF file")
        .after_help("Its matrices overlap in the file, which is so as small as its largest matrix.")
        .arg(shape().default_value("tiny"))
        .arg(tensor_type().default_value("bf16"))
        .arg(path.help("where to"))
}

/// The argument `--shape`.
pub fn shape() -> Arg {
    let known = PossibleValuesParser::new(SHAPES);
    Arg::new("shape").long("shape").value_name("NAME").value_parser(known).help("the model's shape")
}

/// The argument `--type`.
pub fn tensor_type() -> Arg {
    let known = PossibleValuesParser::new(TensorType::all().map(name_of));
    Arg::new("type").long("type").value_name("NAME").value_parser(known).help("how its matrices' elements are stored")
}

/// As `--type` has it.
pub fn name_of(tensor_type: TensorType) -> String {
    tensor_type.name().to_lowercase()
}

/// The type that `--type` names.
pub fn type_named(name: &str) -> TensorType {
    TensorType::all().find(|t| name_of(*t) == name).expect("clap knows them all")
}

/// A model of a shape, in memory.
pub fn model(shape: &str, tensor_type: TensorType) -> Result<Arc<Model>, Failure> {
    let model = Model::from_vec(bytes(shape, tensor_type)).map_err(Failure::failed)?;
    // Nobody computes beside what is measured.
    model.digest();
    Ok(Arc::new(model))
}

fn bytes(shape: &str, tensor_type: TensorType) -> Vec<u8> {
    TinyModel::of_shape(shape, tensor_type).expect("clap knows them all").to_overlapping_bytes()
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    let text = |name| arguments.get_one::<String>(name).expect("it has a default");
    let path = arguments.get_one::<PathBuf>("file").expect("clap requires it");
    let written = std::fs::write(path, bytes(text("shape"), type_named(text("type"))));
    written.map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))
}
