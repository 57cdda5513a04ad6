//! Kernels to a library of the host, kept on disk.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};

use super::{EmulatorError, Result};

/// What comes before the prelude, in order.
const MACHINE: [(&str, &str); 8] = [
    ("language", include_str!("language.h")),
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

/// Nothing is contracted or reordered, and each access of a kernel calls a check of `checks.h`.
const OPTIONS: [&str; 12] = [
    "-std=c++17",
    "-O1",
    "-g",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fsigned-char",
    "-U_FORTIFY_SOURCE",
    "-fsanitize=thread,alignment,bounds,signed-integer-overflow,integer-divide-by-zero,shift-exponent",
];

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
        let mut options: Vec<String> = OPTIONS.iter().map(ToString::to_string).collect();
        options.push("-DFEWSTEP_EMULATE".into());
        options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        // Kernels are looked for behind the preprocessor: no comments, no macros, no text that is left out.
        let expanded =
            self.run(name, &[&options[..], &words("-E -x c++ -")].concat(), &format!("#line 1 \"{name}\"\n{text}"))?;
        let expanded = String::from_utf8_lossy(&expanded.stdout).into_owned();
        let kernels = kernels(&expanded);
        // Kernels get names of their own, which no library of the host has.
        let renamed: String =
            kernels.iter().map(|kernel| format!("#define {kernel} fewstep_kernel_{kernel}\n")).collect();
        let entries: String = kernels.iter().map(|kernel| format!("EMULATE({kernel})\n")).collect();
        let machine: String =
            MACHINE.iter().map(|(name, text)| format!("#line 1 \"{OWN}{name}.h\"\n{text}\n")).collect();
        let source = format!("{machine}{renamed}{expanded}\n{entries}");

        let folder = folder();
        let path = folder.join(self.key(&source, &options) + ".so");
        if !path.exists() {
            self.build(name, &source, &options, &folder, &path)?;
        }
        Ok((path, kernels))
    }

    fn key(&self, source: &str, options: &[String]) -> String {
        let mut hash = Sha256::new();
        for part in [&self.command, &self.version, source].into_iter().chain(options.iter().map(String::as_str)) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Compiles and links aside, then renames: two processes may do so at once.
    fn build(&self, name: &str, source: &str, options: &[String], folder: &Path, path: &Path) -> Result<()> {
        let failed = |source| EmulatorError::Io { path: folder.into(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let aside = tempfile::tempdir_in(folder).map_err(failed)?;
        let file = |name: &str| aside.path().join(name).to_string_lossy().into_owned();
        let (text, object, library) = (file("kernels.cpp"), file("kernels.o"), file("kernels.so"));
        fs::write(&text, source).map_err(failed)?;
        self.run(name, &[options, &["-c".into(), text, "-o".into(), object.clone()]].concat(), "")?;
        // Linked apart and without -fsanitize: the checks are those of `checks.h`, and no other library is needed.
        self.run(name, &[words("-shared -Wl,-Bsymbolic"), vec![object, "-o".into(), library.clone()]].concat(), "")?;
        fs::rename(library, path).map_err(failed)
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

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(Into::into).collect()
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
