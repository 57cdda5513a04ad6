//! Kernels compiled by NVRTC.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;

use cudarc::driver::sys as driver;
use cudarc::nvrtc::{result, sys};

use super::libraries;
use crate::error::refused;
use crate::{Error, Result, Version, cache};

/// What the compiler makes code for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    name: String,
    /// Code for a virtual architecture, which the driver translates: for a device newer than the compiler.
    virtual_code: bool,
}

impl Target {
    /// The device's own architecture; where the compiler does not know it yet, the newest before it.
    pub(super) fn of((major, minor): (i32, i32)) -> Result<Self> {
        let wanted = 10 * major + minor;
        let known = known_architectures()?;
        Ok(match known.iter().copied().filter(|&a| a <= wanted).max() {
            Some(a) if a == wanted => Target { name: real_name(wanted), virtual_code: false },
            Some(a) => Target { name: format!("compute_{a}"), virtual_code: true },
            None => Target { name: real_name(wanted), virtual_code: false },
        })
    }
}

/// Hopper's own instructions need the name with an a.
fn real_name(architecture: i32) -> String {
    if architecture == 90 { "sm_90a".into() } else { format!("sm_{architecture}") }
}

fn known_architectures() -> Result<Vec<i32>> {
    let mut count: c_int = 0;
    // SAFETY: the compiler writes one number.
    unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) }.result().map_err(refused("nvrtcGetNumSupportedArchs"))?;
    let mut all = vec![0; count.max(0) as usize];
    // SAFETY: the compiler writes as many numbers as it said.
    unsafe { sys::nvrtcGetSupportedArchs(all.as_mut_ptr()) }.result().map_err(refused("nvrtcGetSupportedArchs"))?;
    Ok(all)
}

fn compiler_version() -> Result<Version> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the compiler writes two numbers.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().map_err(refused("nvrtcVersion"))?;
    Ok(Version { major, minor })
}

fn driver_version() -> Result<Version> {
    let mut version = 0;
    // SAFETY: the driver writes one number.
    unsafe { driver::cuDriverGetVersion(&mut version) }.result().map_err(refused("cuDriverGetVersion"))?;
    Ok(Version { major: version / 1000, minor: version % 1000 / 10 })
}

/// A driver runs code of compilers of its own major version and of older ones.
fn refuse_old_driver(driver: Version, compiler: Version) -> Result<()> {
    if driver.major < compiler.major { Err(Error::DriverTooOld { driver, compiler }) } else { Ok(()) }
}

#[derive(Debug)]
pub(super) struct Compiler {
    target: Target,
    driver: Version,
    compiler: Version,
}

impl Compiler {
    pub(super) fn new(target: Target) -> Result<Self> {
        let (driver, compiler) = (driver_version()?, compiler_version()?);
        refuse_old_driver(driver, compiler)?;
        Ok(Compiler { target, driver, compiler })
    }

    /// The versions of the driver and of the compiler.
    pub(super) fn versions(&self) -> [Version; 2] {
        [self.driver, self.compiler]
    }

    /// Code for the device: compiled before, or now.
    pub(super) fn compiled(
        &self,
        folder: Option<&Path>,
        name: &str,
        text: &str,
        defines: &[(String, String)],
    ) -> Result<Vec<u8>> {
        let options = options(&self.target.name, defines);
        let versions = format!("{} {}", self.driver, self.compiler);
        let mut parts = vec![text, versions.as_str()];
        parts.extend(options.iter().map(String::as_str));
        cache::get_or(folder, &cache::key(&parts), || {
            compile(name, text, &self.target.name, &options, self.target.virtual_code).map(|c| c.code)
        })
    }
}

fn options(target: &str, defines: &[(String, String)]) -> Vec<String> {
    let mut all = vec![
        format!("--gpu-architecture={target}"),
        "--std=c++17".into(),
        "--device-as-default-execution-space".into(),
    ];
    all.extend(defines.iter().map(|(name, value)| format!("--define-macro={name}={value}")));
    all
}

/// What the compiler made, and what it said.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Code for the architecture.
    pub code: Vec<u8>,
    /// Warnings, and what a verbose assembler tells of registers and spills.
    pub log: String,
}

/// Compiles a source for a named architecture such as `sm_80`, with the assembler's report: needs no device.
///
/// # Errors
/// If the compiler is not found, or the source does not compile.
pub fn compile_for(target: &str, source: &crate::Source, defines: &[(String, String)]) -> Result<Compiled> {
    libraries::compiler()?;
    let mut options = options(target, defines);
    options.push("--ptxas-options=--verbose".into());
    compile(source.name(), &source.text(), target, &options, false)
}

fn compile(name: &str, text: &str, target: &str, options: &[String], virtual_code: bool) -> Result<Compiled> {
    let text = CString::new(text).map_err(refused("a kernel's text"))?;
    let file = CString::new(format!("{name}.cu")).map_err(refused("a kernel's name"))?;
    let program = result::create_program(&text, Some(&file)).map_err(refused("nvrtcCreateProgram"))?;
    // SAFETY: the program is alive until it is destroyed below; text and name outlive it.
    let ran = unsafe { result::compile_program(program, options) };
    // SAFETY: as above.
    let log = unsafe { result::get_program_log(program) }.map(|log| string(&log)).unwrap_or_default();
    let code = match ran {
        Ok(()) => image(program, virtual_code),
        Err(_) => Err(Error::Compile { source_name: name.into(), target: target.into(), log: log.clone() }),
    };
    // SAFETY: as above; the program is used no more.
    unsafe { result::destroy_program(program) }.map_err(refused("nvrtcDestroyProgram"))?;
    Ok(Compiled { code: code?, log })
}

fn image(program: sys::nvrtcProgram, virtual_code: bool) -> Result<Vec<u8>> {
    if virtual_code {
        // SAFETY: the program was compiled.
        let ptx = unsafe { result::get_ptx(program) }.map_err(refused("nvrtcGetPTX"))?;
        return Ok(ptx.into_iter().map(|c| c as u8).collect());
    }
    let mut size = 0;
    // SAFETY: the program was compiled; the compiler writes as many bytes as it says.
    unsafe { sys::nvrtcGetCUBINSize(program, &mut size) }.result().map_err(refused("nvrtcGetCUBINSize"))?;
    let mut code = vec![0u8; size];
    // SAFETY: as above.
    unsafe { sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()) }.result().map_err(refused("nvrtcGetCUBIN"))?;
    Ok(code)
}

fn string(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_of_an_older_major_version_is_refused_with_both_versions() {
        let version = |major, minor| Version { major, minor };
        assert!(refuse_old_driver(version(13, 0), version(13, 4)).is_ok());
        assert!(refuse_old_driver(version(14, 0), version(13, 0)).is_ok());
        let e = refuse_old_driver(version(12, 8), version(13, 0)).unwrap_err().to_string();
        assert!(e.contains("12.8") && e.contains("13.0") && e.contains("update the driver"), "{e}");
    }
}
