//! Names: of shards, of members, and what a member's name says.

use crate::codec::Encoding;

/// Samples in a shard, as published.
pub const SHARD_SIZE: u64 = 256;
/// The longest member name that is read, in bytes. Published names have 19.
pub const NAME_MAX: usize = 255;

/// One of the three parts of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The latent video, [C, F, H, W].
    Latent,
    /// The text embedding, [S, D].
    Embed,
    /// The prompt, UTF-8.
    Prompt,
}

impl Part {
    /// The parts in the order of a shard.
    pub const ALL: [Part; 3] = [Part::Latent, Part::Embed, Part::Prompt];

    /// The first part of the extension.
    pub fn name(self) -> &'static str {
        match self {
            Part::Latent => "latent",
            Part::Embed => "embed",
            Part::Prompt => "prompt",
        }
    }
}

/// What a member's name says: whose it is, which part, and how that is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberName {
    /// The sample's key.
    pub key: String,
    /// Which part of the sample.
    pub part: Part,
    /// How a tensor is encoded; a prompt is plain text whatever this says.
    pub encoding: Encoding,
}

/// The file name of shard `i`.
pub fn shard_name(i: u64) -> String {
    format!("shard_{i:06}.tar")
}

/// The number of a shard by its file name, if it is just the name that [`shard_name`] gives.
pub fn shard_number(name: &str) -> Option<u64> {
    let i = name.strip_prefix("shard_")?.strip_suffix(".tar")?.parse().ok()?;
    (name == shard_name(i)).then_some(i)
}

/// The key of sample `i`.
pub fn sample_key(i: u64) -> String {
    format!("{i:09}")
}

/// The name of a sample's part.
pub fn member_name(key: &str, part: Part, encoding: Encoding) -> String {
    match part {
        Part::Prompt => format!("{key}.prompt.txt"),
        _ => format!("{key}.{}.{}", part.name(), encoding.extension()),
    }
}

/// Reads a member's name; none for a file that is no part of a sample.
///
/// As in WebDataset the key ends at the first dot of the file name. In the merged form `key/key.ext` the folder says
/// nothing new and is left out; any other folder is part of the key.
///
/// # Errors
/// With the reason, if the name is absolute, climbs by `..`, is not UTF-8, or is too long.
pub fn parse_name(name: &[u8]) -> Result<Option<MemberName>, &'static str> {
    if name.len() > NAME_MAX {
        return Err("its name is longer than 255 bytes");
    }
    let name = std::str::from_utf8(name).map_err(|_| "its name is not UTF-8")?;
    if name.starts_with('/') || name.contains(['\\', '\0']) {
        return Err("its name is absolute, or holds a backslash or a NUL");
    }
    let steps: Vec<&str> = name.split('/').filter(|s| !s.is_empty() && *s != ".").collect();
    if steps.contains(&"..") {
        return Err("its name climbs out of the archive by '..'");
    }
    let Some((file, folders)) = steps.split_last() else { return Ok(None) };
    let Some((stem, extension)) = file.split_once('.').filter(|(stem, _)| !stem.is_empty()) else { return Ok(None) };
    let (part, encoding) = match extension {
        "latent.pt" => (Part::Latent, Encoding::Torch),
        "latent.safetensors" => (Part::Latent, Encoding::Safetensors),
        "embed.pt" => (Part::Embed, Encoding::Torch),
        "embed.safetensors" => (Part::Embed, Encoding::Safetensors),
        "prompt.txt" => (Part::Prompt, Encoding::Torch),
        _ => return Ok(None),
    };
    let key = match folders {
        [] => stem.to_string(),
        [folder] if *folder == stem => stem.to_string(),
        _ => format!("{}/{stem}", folders.join("/")),
    };
    Ok(Some(MemberName { key, part, encoding }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_written_are_names_read() {
        for part in Part::ALL {
            for encoding in [Encoding::Torch, Encoding::Safetensors] {
                let read = parse_name(member_name("000000012", part, encoding).as_bytes()).unwrap().unwrap();
                assert_eq!((read.key.as_str(), read.part), ("000000012", part));
                assert!(part == Part::Prompt || read.encoding == encoding);
            }
        }
        assert_eq!(shard_number(&shard_name(1_234_567)), Some(1_234_567));
        assert_eq!(shard_number("shard_1.tar"), None);
    }

    #[test]
    fn the_merged_form_has_the_same_keys() {
        assert_eq!(parse_name(b"./7/7.embed.pt").unwrap().unwrap().key, "7");
        assert_eq!(parse_name(b"a/7.embed.pt").unwrap().unwrap().key, "a/7");
        assert_eq!(parse_name(b"7.json").unwrap(), None);
    }

    #[test]
    fn names_that_leave_the_archive_are_refused() {
        for name in ["/etc/1.latent.pt", "../1.latent.pt", "a/../../1.latent.pt", "c:\\1.latent.pt"] {
            assert!(parse_name(name.as_bytes()).is_err(), "{name}");
        }
        assert!(parse_name(&[b'a'; 300]).is_err() && parse_name(&[0xff, b'.']).is_err());
    }
}
