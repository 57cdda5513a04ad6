//! The `config.json` that lies beside published weights: the original's keys and diffusers'.

use serde_json::{Map, Value, json};

use super::WanConfig;
use crate::{Error, Result};

/// Width of CLIP's tokens, which the original code does not write down.
const CLIP_DIM: usize = 1280;
/// Tokens of the two images of a first-and-last-frame network, which the original code does not write down.
const TWO_IMAGES: usize = 2 * 257;
/// Text tokens of every published network.
const TEXT_LEN: usize = 512;
/// Positions along an axis that diffusers tabulates.
const ROPE_MAX_SEQ_LEN: usize = 1024;
/// The versions that wrote the published files, which readers compare with their own.
const ORIGINAL_VERSION: &str = "0.30.0";
const DIFFUSERS_VERSION: &str = "0.33.0";
/// The one normalisation of queries and keys that is built.
const QK_NORM: &str = "rms_norm_across_heads";
/// More than any extent of a network, and little enough that products of a few stay numbers.
const MAX_EXTENT: u64 = 1 << 20;
/// The same of a patch.
const MAX_PATCH: u64 = 1 << 10;
/// Kinds of network in the original's `model_type` that this structure serves.
const MODEL_TYPES: [&str; 4] = ["t2v", "i2v", "flf2v", "ti2v"];

/// An object whose keys are asked for one by one.
struct Keys<'j>(&'j Map<String, Value>);

impl<'j> Keys<'j> {
    /// A value that is there and not null.
    fn get(&self, key: &str) -> Option<&'j Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn optional(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).map(|v| number(v, MAX_EXTENT).ok_or_else(|| no_number(key))).transpose()
    }

    fn int(&self, key: &str) -> Result<usize> {
        self.optional(key)?.ok_or_else(|| no_number(key))
    }

    /// What the published classes take where a file is silent, as the original's often are.
    fn int_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    fn eps(&self) -> Result<f64> {
        self.get("eps").map_or(Ok(1e-6), |v| v.as_f64().ok_or_else(|| no_number("eps")))
    }

    fn patch(&self) -> Result<[usize; 3]> {
        let key = "patch_size";
        let Some(value) = self.get(key) else { return Ok([1, 2, 2]) };
        let axes = value.as_array().ok_or_else(|| no_number(key))?;
        let axes = axes.iter().map(|v| number(v, MAX_PATCH));
        axes.collect::<Option<Vec<_>>>().and_then(|v| v.try_into().ok()).ok_or_else(|| no_number(key))
    }

    /// Refuses a key with another value than the structure has; silence is its value.
    fn only(&self, key: &str, built: &[Value]) -> Result<()> {
        match self.get(key) {
            Some(v) if !built.contains(v) => Err(refused(format!("'{key}' is {v}; this network has {}", built[0]))),
            _ => Ok(()),
        }
    }
}

fn number(v: &Value, most: u64) -> Option<usize> {
    v.as_u64().filter(|&n| n <= most).and_then(|n| usize::try_from(n).ok())
}

fn refused(problem: String) -> Error {
    Error::Config { network: "wan", problem, remedy: "use a file that describes a Wan2.1 or Wan2.2 transformer".into() }
}

fn no_number(key: &str) -> Error {
    Error::Config {
        network: "wan",
        problem: format!("config.json has no number '{key}' (or numbers) that a network can have"),
        remedy: "take the file from the folder of the weights".into(),
    }
}

impl WanConfig {
    /// The extents in a `config.json`, of the original and rCM code (`dim`, `num_heads`, `in_dim`, …) or of diffusers
    /// (`num_attention_heads`, `attention_head_dim`, `in_channels`, …), told apart by `num_attention_heads`. What a file is
    /// silent about has the published classes' default.
    ///
    /// The original files do not show whether there is an image branch: `model_type` "i2v" is read as Wan2.1's, with one,
    /// unless `img_dim` is null. Weights show it; see [`WanConfig::of_weights_with`].
    ///
    /// # Errors
    /// If it is no object, a needed key is missing or no number, it describes a structure that is not this one, or the
    /// extents are impossible.
    pub fn from_json(json: &Value) -> Result<Self> {
        let keys = Keys(json.as_object().ok_or_else(|| refused("config.json is no object".into()))?);
        keys.only("cross_attn_norm", &[true.into()])?;
        keys.only("qk_norm", &[QK_NORM.into(), true.into()])?;
        let config = match keys.get("num_attention_heads") {
            Some(_) => Self::from_diffusers(&keys)?,
            None => Self::from_original(&keys)?,
        };
        config.validate()?;
        Ok(config)
    }

    fn from_diffusers(keys: &Keys) -> Result<Self> {
        keys.only("_class_name", &["WanTransformer3DModel".into()])?;
        let heads = keys.int("num_attention_heads")?;
        let dim = heads * keys.int("attention_head_dim")?;
        keys.only("added_kv_proj_dim", &[dim.into()])?;
        let in_channels = keys.int_or("in_channels", 16)?;
        Ok(WanConfig {
            dim,
            ffn_dim: keys.int("ffn_dim")?,
            heads,
            layers: keys.int("num_layers")?,
            in_channels,
            out_channels: keys.int_or("out_channels", in_channels)?,
            patch: keys.patch()?,
            text_dim: keys.int_or("text_dim", 4096)?,
            freq_dim: keys.int_or("freq_dim", 256)?,
            image_dim: keys.optional("image_dim")?,
            image_positions: keys.optional("pos_embed_seq_len")?,
            eps: keys.eps()?,
        })
    }

    fn from_original(keys: &Keys) -> Result<Self> {
        keys.only("model_type", &MODEL_TYPES.map(Value::from))?;
        keys.only("window_size", &[json!([-1, -1])])?;
        let kind = keys.get("model_type").and_then(Value::as_str).unwrap_or("t2v");
        let by_kind = matches!(kind, "i2v" | "flf2v") && !keys.0.contains_key("img_dim");
        let image_dim = if by_kind { Some(CLIP_DIM) } else { keys.optional("img_dim")? };
        let positions = (kind == "flf2v").then_some(TWO_IMAGES);
        Ok(WanConfig {
            dim: keys.int("dim")?,
            ffn_dim: keys.int("ffn_dim")?,
            heads: keys.int("num_heads")?,
            layers: keys.int("num_layers")?,
            in_channels: keys.int_or("in_dim", 16)?,
            out_channels: keys.int_or("out_dim", 16)?,
            patch: keys.patch()?,
            text_dim: keys.int_or("text_dim", 4096)?,
            freq_dim: keys.int_or("freq_dim", 256)?,
            image_dim,
            image_positions: keys.optional("img_positions")?.or(positions),
            eps: keys.eps()?,
        })
    }

    /// The original's name of this kind of network: "flf2v" with positions of image tokens, "i2v" with a condition beside the
    /// latent, else "t2v".
    pub fn model_type(&self) -> &'static str {
        match (self.image_positions, self.image_dim.is_some() || self.in_channels != self.out_channels) {
            (Some(_), _) => "flf2v",
            (None, true) => "i2v",
            (None, false) => "t2v",
        }
    }

    /// The `config.json` of the original code. The width of the image tokens (or that there are none) and the number of
    /// positions, which that code does not write down, stand under `img_dim` and `img_positions`, which it ignores.
    pub fn to_original_json(&self) -> Value {
        let mut json = json!({
            "_class_name": "WanModel",
            "_diffusers_version": ORIGINAL_VERSION,
            "model_type": self.model_type(),
            "dim": self.dim,
            "ffn_dim": self.ffn_dim,
            "num_heads": self.heads,
            "num_layers": self.layers,
            "in_dim": self.in_channels,
            "out_dim": self.out_channels,
            "patch_size": self.patch,
            "text_dim": self.text_dim,
            "text_len": TEXT_LEN,
            "freq_dim": self.freq_dim,
            "eps": self.eps,
        });
        if self.model_type() != "t2v" {
            json["img_dim"] = self.image_dim.into();
        }
        if let Some(n) = self.image_positions {
            json["img_positions"] = n.into();
        }
        json
    }

    /// The `config.json` of diffusers' `WanTransformer3DModel`.
    pub fn to_diffusers_json(&self) -> Value {
        json!({
            "_class_name": "WanTransformer3DModel",
            "_diffusers_version": DIFFUSERS_VERSION,
            "added_kv_proj_dim": self.image_dim.map(|_| self.dim),
            "attention_head_dim": self.head_dim(),
            "cross_attn_norm": true,
            "eps": self.eps,
            "ffn_dim": self.ffn_dim,
            "freq_dim": self.freq_dim,
            "image_dim": self.image_dim,
            "in_channels": self.in_channels,
            "num_attention_heads": self.heads,
            "num_layers": self.layers,
            "out_channels": self.out_channels,
            "patch_size": self.patch,
            "pos_embed_seq_len": self.image_positions,
            "qk_norm": QK_NORM,
            "rope_max_seq_len": ROPE_MAX_SEQ_LEN,
            "text_dim": self.text_dim,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remedied(json: Value) -> String {
        WanConfig::from_json(&json).unwrap_err().to_string()
    }

    #[test]
    fn every_preset_comes_back_from_both_kinds() {
        for (name, preset) in WanConfig::PRESETS {
            let config = preset();
            assert_eq!(WanConfig::from_json(&config.to_original_json()).unwrap(), config, "{name}");
            assert_eq!(WanConfig::from_json(&config.to_diffusers_json()).unwrap(), config, "{name}");
        }
    }

    /// The files beside the published weights.
    #[test]
    fn published_files_are_read_with_their_silences() {
        let original = json!({
            "_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": 1536, "eps": 1e-06, "ffn_dim": 8960,
            "freq_dim": 256, "in_dim": 16, "model_type": "t2v", "num_heads": 12, "num_layers": 30, "out_dim": 16,
            "text_len": 512
        });
        assert_eq!(WanConfig::from_json(&original).unwrap(), WanConfig::t2v_1_3b());
        let mut i2v = json!({
            "_class_name": "WanModel", "dim": 5120, "eps": 1e-06, "ffn_dim": 13824, "freq_dim": 256, "in_dim": 36,
            "model_type": "i2v", "num_heads": 40, "num_layers": 40, "out_dim": 16, "text_len": 512
        });
        assert_eq!(WanConfig::from_json(&i2v).unwrap(), WanConfig::i2v_14b());
        i2v["model_type"] = "flf2v".into();
        assert_eq!(WanConfig::from_json(&i2v).unwrap(), WanConfig::flf2v_14b());
        let diffusers = json!({
            "_class_name": "WanTransformer3DModel", "added_kv_proj_dim": 5120, "attention_head_dim": 128,
            "cross_attn_norm": true, "eps": 1e-06, "ffn_dim": 13824, "freq_dim": 256, "image_dim": 1280,
            "in_channels": 36, "num_attention_heads": 40, "num_layers": 40, "out_channels": 16,
            "patch_size": [1, 2, 2], "pos_embed_seq_len": 514, "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 1024, "text_dim": 4096
        });
        assert_eq!(WanConfig::from_json(&diffusers).unwrap(), WanConfig::flf2v_14b());
    }

    #[test]
    fn what_is_missing_or_of_another_structure_is_refused_by_key() {
        for key in ["dim", "ffn_dim", "num_heads", "num_layers"] {
            let mut json = WanConfig::digits().to_original_json();
            json.as_object_mut().unwrap().remove(key);
            assert!(remedied(json).contains(&format!("'{key}'")));
        }
        let changed = |key: &str, to: Value| {
            let mut original = WanConfig::i2v_14b().to_original_json();
            original[key] = to.clone();
            let mut diffusers = WanConfig::i2v_14b().to_diffusers_json();
            diffusers[key] = to;
            [original, diffusers]
        };
        let [_, class] = changed("_class_name", "WanVACETransformer3DModel".into());
        assert!(remedied(class).contains("WanVACETransformer3DModel"));
        let [kind, _] = changed("model_type", "s2v".into());
        assert!(remedied(kind).contains("s2v"));
        for (key, to) in [("qk_norm", json!(false)), ("cross_attn_norm", json!(false)), ("patch_size", json!([1, 2]))] {
            assert!(changed(key, to).into_iter().all(|json| remedied(json).contains(key)), "{key}");
        }
        for to in [json!(-1), json!(1.5), json!("12"), json!(u64::MAX)] {
            let [_, json] = changed("attention_head_dim", to);
            assert!(remedied(json).contains(';'));
        }
        assert!(remedied(json!([])).contains("no object"));
    }
}
