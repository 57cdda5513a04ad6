//! Kernels to a library of the host, kept on disk.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};

use super::{EmulatorError, Result};

/// What comes before the prelude.
const DEVICE: (&str, &str) = ("device", include_str!("device.h"));
/// What kernels are linked with, in order.
const MACHINE: [(&str, &str); 8] = [
    DEVICE,
    ("fibres", include_str!("fibres.h")),
    ("state", include_str!("state.h")),
    ("memory", include_str!("memory.h")),
    ("collectives", include_str!("collectives.h")),
    ("launch", include_str!("launch.h")),
    ("checks", include_str!("checks.h")),
    ("primitives", include_str!("primitives.h")),
];
/// Of the machine's file names in source lines, to tell them from the kernels'.
pub(super) const OWN: &str = "emulator-";

/// Nothing is contracted or reordered.
const OPTIONS: &str = "-std=c++17 -gdwarf-4 -fPIC -fvisibility=hidden -ffp-contract=off -fno-exceptions -fno-rtti \
     -fno-threadsafe-statics -fsigned-char -U_FORTIFY_SOURCE";
/// Each access of a kernel calls a check of `checks.h`.
const KERNEL_OPTIONS: &str = "-O1 -DFEWSTEP_EMULATE \
     -fsanitize=thread,alignment,bounds,signed-integer-overflow,integer-divide-by-zero,shift-exponent";
const MACHINE_OPTIONS: &str = "-O2";

/// The system's C++ compiler.
#[derive(Debug)]
pub(super) struct Compiler {
    command: String,
    version: String,
}

impl Compiler {
    pub fn find() -> Result<Self> {
        let command = std::env::var("CXX").ok().filter(|c| !c.is_empty()).unwrap_or_else(|| "c++".into());
        Self::named(command)
    }

    pub fn named(command: String) -> Result<Self> {
        let output = Command::new(&command).arg("--version").output();
        let output = output.map_err(|source| EmulatorError::NoCompiler { command: command.clone(), source })?;
        Ok(Compiler { command, version: String::from_utf8_lossy(&output.stdout).into_owned() })
    }

    /// The library of a source, and the names of its kernels.
    pub fn compile(&self, name: &str, text: &str, defines: &[(String, String)]) -> Result<(PathBuf, Vec<String>)> {
        let mut options = words(&[OPTIONS, KERNEL_OPTIONS].join(" "));
        options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        // Kernels are looked for behind the preprocessor: no comments, no macros, no text that is left out.
        let input = format!("#line 1 \"{name}\"\n{text}");
        let expanded = self.run(name, &[&options[..], &words("-E -x c++ -")].concat(), &input)?;
        let expanded = String::from_utf8_lossy(&expanded.stdout).into_owned();
        let kernels = kernels(&expanded);
        // Kernels get names of their own, which no library of the host has.
        let renamed: String = kernels.iter().map(|k| format!("#define {k} fewstep_kernel_{k}\n")).collect();
        let entries: String = kernels.iter().map(|k| format!("EMULATE({k})\n")).collect();
        let source = [part(DEVICE), renamed, expanded, entries].join("\n");
        let machine = self.machine()?;
        let path = self.kept(&[&source, &machine.to_string_lossy()], &options, ".so", |kept| {
            let object = kept.with_extension("o");
            self.object(name, &source, &options, &object)?;
            // Linked without -fsanitize: the checks are the machine's, and no other library is needed.
            let link = [words("-shared -Wl,-Bsymbolic -o"), files(&[kept, &object, &machine])].concat();
            self.run(name, &link, "").map(drop)
        })?;
        Ok((path, kernels))
    }

    /// The object that kernels are linked with.
    fn machine(&self) -> Result<PathBuf> {
        let options = words(&[OPTIONS, MACHINE_OPTIONS].join(" "));
        let source: String = MACHINE.map(part).concat();
        self.kept(&[&source], &options, ".o", |kept| self.object("the emulator", &source, &options, kept))
    }

    /// The file of what `make` makes from a source, unless it is there: made aside, then renamed, since two processes may do
    /// so at once.
    fn kept(
        &self,
        parts: &[&str],
        options: &[String],
        extension: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let folder = folder();
        let mut hash = Sha256::new();
        for part in [&*self.command, &*self.version]
            .into_iter()
            .chain(parts.iter().copied())
            .chain(options.iter().map(|o| &**o))
        {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let key: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let path = folder.join(key + extension);
        if !path.exists() {
            let failed = |source| EmulatorError::Io { path: folder.clone(), source };
            fs::create_dir_all(&folder).map_err(failed)?;
            let aside = tempfile::tempdir_in(&folder).map_err(failed)?;
            let kept = aside.path().join("kept").with_extension(&extension[1..]);
            make(&kept)?;
            fs::rename(&kept, &path).map_err(failed)?;
        }
        Ok(path)
    }

    fn object(&self, name: &str, source: &str, options: &[String], object: &Path) -> Result<()> {
        let text = object.with_extension("cpp");
        fs::write(&text, source).map_err(|source| EmulatorError::Io { path: text.clone(), source })?;
        self.run(name, &[options, &words("-c -o"), &files(&[object, &text])].concat(), "").map(drop)
    }

    fn run(&self, name: &str, arguments: &[String], input: &str) -> Result<Output> {
        let failed = |source| EmulatorError::NoCompiler { command: self.command.clone(), source };
        let child = Command::new(&self.command)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.map_err(failed)?;
        let mut stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            // A compiler that stops reading says why on its own.
            scope.spawn(move || stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes())));
            child.wait_with_output()
        });
        let output = output.map_err(failed)?;
        match output.status.success() {
            true => Ok(output),
            false => Err(EmulatorError::Compile {
                name: name.into(),
                log: String::from_utf8_lossy(&output.stderr).into_owned(),
            }),
        }
    }
}

fn part((name, text): (&str, &str)) -> String {
    format!("#line 1 \"{OWN}{name}.h\"\n{text}\n")
}

fn files(paths: &[&Path]) -> Vec<String> {
    paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(Into::into).collect()
}

/// Where libraries are kept: beside the program, of which the tests' are in `deps`.
fn folder() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let mut folder = exe.parent().unwrap_or(Path::new("."));
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap_or(folder);
    }
    folder.join("emulator")
}

/// The names of all kernels of a preprocessed text: what stands before the parameters of each `__global__`.
pub(super) fn kernels(text: &str) -> Vec<String> {
    text.split("__global__").skip(1).filter_map(|after| name(after).map(Into::into)).collect()
}

fn name(after: &str) -> Option<&str> {
    let mut rest = after.trim_start();
    loop {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
        let (word, tail) = rest.split_at(end);
        let tail = tail.trim_start();
        match (word, tail.strip_prefix('(')) {
            ("", _) => return None,
            ("__launch_bounds__", Some(tail)) => rest = closed(tail)?.trim_start(),
            (name, Some(_)) => return Some(name),
            (_, None) => rest = tail,
        }
    }
}

/// What follows the parenthesis that closes.
fn closed(text: &str) -> Option<&str> {
    let mut open = 1;
    for (at, c) in text.char_indices() {
        open += i32::from(c == '(') - i32::from(c == ')');
        if open == 0 {
            return Some(&text[at + 1..]);
        }
    }
    None
}
