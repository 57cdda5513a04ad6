//! Presets, and the texts of all layers.

use toml::Spanned;

use super::Layers;
use super::error::{ConfigurationError, Kind, suggestion};
use super::text::Text;

/// A named configuration that is built into the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset<'a> {
    /// The name by which a command or a `base` chooses it.
    pub name: &'a str,
    /// Its TOML.
    pub text: &'a str,
}

/// The texts of all layers, lowest first.
pub(super) fn texts(layers: Layers<'_>) -> Result<Vec<Text>, ConfigurationError> {
    let mut stack: Vec<Text> = layers.overrides.iter().rev().map(|text| Text::assignment(text)).collect();
    let file = layers.file.map(Text::file).transpose()?;
    let preset = match &file {
        None => layers.preset.or_else(|| Some(layers.presets.first()?.name)).map(str::to_owned),
        Some(file) => below_file(file, layers.preset)?,
    };
    let mut asked = file.as_ref().and_then(|file| Some((file.clone(), file.base().ok()??)));
    stack.extend(file);
    let mut preset = preset;
    while let Some(name) = preset {
        let text = find(layers.presets, &name, asked.as_ref())?;
        if stack.iter().any(|above| above.is_preset() && above.name() == text.name()) {
            return Err(circular(&name, asked.as_ref()));
        }
        let base = text.base()?;
        preset = base.as_ref().map(|base| base.get_ref().clone());
        asked = base.map(|base| (text.clone(), base));
        stack.push(text);
    }
    stack.reverse();
    Ok(stack)
}

/// The preset below a file: the one that it names, or the one that the command line does.
fn below_file(file: &Text, preset: Option<&str>) -> Result<Option<String>, ConfigurationError> {
    match (file.base()?, preset) {
        (Some(base), Some(preset)) if base.get_ref() != preset => {
            let message = format!("{} stands on another preset than `{preset}`", file.name());
            let help = format!("leave out `--preset {preset}`, or remove `base` from the file");
            let excerpt = file.excerpt(&base.span(), "the file's");
            Err(ConfigurationError::new(Kind::Preset, message, Some(help), Some(excerpt)))
        }
        (Some(base), _) => Ok(Some(base.into_inner())),
        (None, preset) => Ok(preset.map(str::to_owned)),
    }
}

/// A text, and the value of `base` in it.
type Asked = (Text, Spanned<String>);

fn find(presets: &[Preset<'_>], name: &str, asked: Option<&Asked>) -> Result<Text, ConfigurationError> {
    if let Some(preset) = presets.iter().find(|preset| preset.name == name) {
        return Ok(Text::preset(preset.name, preset.text));
    }
    let names: Vec<&str> = presets.iter().map(|preset| preset.name).collect();
    let help = suggestion("preset", name, &names);
    let excerpt = asked.map(|(text, base)| text.excerpt(&base.span(), "no such preset"));
    Err(ConfigurationError::new(Kind::Preset, format!("there is no preset `{name}`"), Some(help), excerpt))
}

fn circular(name: &str, asked: Option<&Asked>) -> ConfigurationError {
    let excerpt = asked.map(|(text, base)| text.excerpt(&base.span(), "already above this one"));
    ConfigurationError::new(Kind::Preset, format!("the preset `{name}` stands on itself"), None, excerpt)
}
