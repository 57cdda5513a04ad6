//! `fewstep export`: weights in the layouts and files that other programs load.

use std::path::Path;

use fewstep_formats::{FileKind, write_folder, write_weights};
use fewstep_nn::wan::{Wan, WanLayout};
use fewstep_nn::weights::Policy;
use fewstep_tensor::DType;
use fewstep_tensor::file::TensorFile;

use crate::args::{ExportArgs, FormatArg, LayoutArg, StorageArg};
use crate::error::{Error, Result};
use crate::model::Weights;
use crate::status;
use crate::terminal::print;

/// The metadata key and value by which loaders know whose axes these are.
const FORMAT: (&str, &str) = ("format", "pt");
/// What every file in a folder of weights is called, or starts with.
const FOLDER_FILES: [&str; 2] = ["config.json", "diffusion_pytorch_model"];

/// What is written.
enum Target {
    File(FileKind),
    Folder,
}

/// Runs the command.
///
/// # Errors
/// If the model is none or the output refuses.
pub fn run(args: &ExportArgs) -> Result<()> {
    let target = target(args)?;
    refuse_existing(&args.output, &target, args.force)?;
    let source = Weights::read(&args.model, args.heads)?;
    let wan = Wan::new(source.network.clone())?;
    let params = wan.load_from(&source.file, Path::new(&args.model), Policy::AsStored)?;
    let patch = wan.config().patch;
    let layout = match args.layout {
        LayoutArg::Original => WanLayout::Original { patch },
        LayoutArg::Rcm => WanLayout::Rcm,
        LayoutArg::Diffusers => WanLayout::Diffusers { patch },
    };
    let mut file = wan.store(&params, layout, None)?;
    file.metadata = source.file.metadata.clone();
    file.metadata.insert(FORMAT.0.into(), FORMAT.1.into());
    write(args, &target, &wan, &file)?;
    status!("Exported", "{} tensors, {} parameters", file.tensors.len(), params.count());
    print(format_args!("{}\n", args.output.display()))
}

fn write(args: &ExportArgs, target: &Target, wan: &Wan, file: &TensorFile) -> Result<()> {
    let dtype = args.dtype.map(|dtype| match dtype {
        StorageArg::Bf16 => DType::Bf16,
        StorageArg::F32 => DType::F32,
    });
    match target {
        Target::File(kind) => write_weights(&args.output, *kind, file, dtype)?,
        Target::Folder => {
            let config = match args.layout {
                LayoutArg::Diffusers => wan.config().to_diffusers_json(),
                _ => wan.config().to_original_json(),
            };
            write_folder(&args.output, &config, file, dtype, args.shard_size)?;
        }
    }
    Ok(())
}

/// A file where the name's ending or `--format` says so, else a folder.
fn target(args: &ExportArgs) -> Result<Target> {
    let output = args.output.display();
    let by_name = FileKind::of_name(&args.output);
    let asked = args.format.map(|format| match format {
        FormatArg::Safetensors => FileKind::Safetensors,
        FormatArg::Pth => FileKind::Torch,
    });
    match (by_name, asked) {
        (Some(named), Some(asked)) if named != asked => Err(Error::Argument(format!(
            "{output}: its ending says another format than --format; leave one of them out"
        ))),
        (Some(kind), _) => Ok(Target::File(kind)),
        (None, Some(FileKind::Torch)) if args.layout == LayoutArg::Diffusers => Err(Error::Argument(format!(
            "{output}: diffusers' folders hold safetensors; leave --format out, or name a file that ends in .pth"
        ))),
        (None, Some(kind)) if args.layout != LayoutArg::Diffusers => Ok(Target::File(kind)),
        (None, None) if args.layout == LayoutArg::Rcm => Err(Error::Argument(format!(
            "{output}: weights of the rCM layout are one file; name it .safetensors or .pth, or say --format"
        ))),
        _ => Ok(Target::Folder),
    }
}

/// Refuses to write over something, and with `force` over anything but the same kind of thing.
fn refuse_existing(output: &Path, target: &Target, force: bool) -> Result<()> {
    if !output.exists() {
        return Ok(());
    }
    let refused = |problem: &str| Err(Error::Argument(format!("{}: {problem}", output.display())));
    match target {
        Target::File(_) if output.is_dir() => refused("is a folder; name a file in it"),
        Target::Folder if output.is_file() => refused("is a file; name a folder, or a file that ends in .safetensors"),
        _ if !force => refused("is there already; choose another name, or --force replaces it"),
        Target::File(_) => Ok(()),
        Target::Folder => {
            let entries = std::fs::read_dir(output).map_err(Error::io(output))?;
            for entry in entries {
                let name = entry.map_err(Error::io(output))?.file_name();
                if !FOLDER_FILES.iter().any(|known| name.to_string_lossy().starts_with(known)) {
                    let name = name.to_string_lossy();
                    return refused(&format!(
                        "holds '{name}', which is no part of exported weights; choose another name"
                    ));
                }
            }
            Ok(())
        }
    }
}
