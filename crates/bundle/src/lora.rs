//! LoRA files as a user names them, and as a bundle records them.

use crate::{Error, Field};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The experts that a LoRA is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraExpert {
    /// The expert for high noise.
    HighNoise,
    /// The expert for low noise.
    LowNoise,
    /// Every expert.
    All,
}

crate::named!(
    LoraExpert, Field::Lora, "expert",
    "high_noise" | "high" => HighNoise, "low_noise" | "low" => LowNoise, "all" => All,
);

impl LoraExpert {
    /// The expert that the name of a file states with the word `high` or `low`; none if it has neither or both.
    ///
    /// Words end at characters other than letters, and where a small letter is followed by a capital one, so that `slow`
    /// and `glow` do not count.
    ///
    /// ```
    /// use bundle::lora::LoraExpert;
    ///
    /// let of = |name| LoraExpert::in_file_name(name);
    /// assert_eq!(of("Wan2.2-T2V-A14B-4steps-lora-HIGH-rank64.safetensors"), Some(LoraExpert::HighNoise));
    /// assert_eq!(of("low_noise_model.safetensors"), Some(LoraExpert::LowNoise));
    /// assert_eq!(of("slow_motion.safetensors"), None);
    /// ```
    pub fn in_file_name(name: &str) -> Option<Self> {
        let mut words = vec![String::new()];
        let mut previous = ' ';
        for letter in name.chars() {
            if !letter.is_alphabetic() || (previous.is_lowercase() && letter.is_uppercase()) {
                words.push(String::new());
            }
            if let Some(word) = words.last_mut().filter(|_| letter.is_alphabetic()) {
                word.extend(letter.to_lowercase());
            }
            previous = letter;
        }
        let has = |names: [&str; 2]| words.iter().any(|word| names.contains(&word.as_str()));
        match (has(["high", "highnoise"]), has(["low", "lownoise"])) {
            (true, false) => Some(Self::HighNoise),
            (false, true) => Some(Self::LowNoise),
            _ => None,
        }
    }
}

/// A LoRA file, how strongly it applies, and to which experts: `[EXPERT=]FILE[@STRENGTH]`.
///
/// ```
/// use bundle::lora::{LoraExpert, LoraUse};
///
/// let lora: LoraUse = "low=style.safetensors@0.6".parse()?;
/// assert_eq!((lora.expert, lora.strength), (Some(LoraExpert::LowNoise), 0.6));
/// assert_eq!(lora.to_string(), "low_noise=style.safetensors@0.6");
/// assert_eq!("a=b@home/x.safetensors".parse::<LoraUse>()?.strength, 1.0);
/// assert!("style.safetensors@strong".parse::<LoraUse>().is_err());
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraUse {
    /// The experts, if they are stated. Else the keys of the file decide, then its name; else all experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<LoraExpert>,
    /// The file.
    pub file: PathBuf,
    /// Factor on the changes; finite. 0 changes nothing.
    pub strength: f32,
}

impl LoraUse {
    /// A file at full strength, for the experts that its keys or its name state.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { expert: None, file: file.into(), strength: 1.0 }
    }
}

impl FromStr for LoraUse {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |rule: &str| {
            let fix = "write [EXPERT=]FILE[@STRENGTH], such as high_noise=style.safetensors@0.8";
            Error::value(Field::Lora, format!("`{text}`"), rule.to_owned(), fix)
        };
        let stated = text.split_once('=').and_then(|(name, rest)| Some((name.parse().ok()?, rest)));
        let (expert, rest) = stated.map_or((None, text), |(expert, rest)| (Some(expert), rest));
        // A folder or a file may have an @ in its name. A strength has no slash and no file extension.
        let (file, strength) = match rest.rsplit_once('@') {
            Some((file, strength)) if !strength.contains('/') && !strength.ends_with(".safetensors") => {
                let number = strength.parse::<f32>().ok().filter(|number| number.is_finite());
                (file, number.ok_or_else(|| wrong("the strength is not a number"))?)
            }
            _ => (rest, 1.0),
        };
        if file.is_empty() {
            return Err(wrong("no file is named"));
        }
        Ok(Self { expert, file: file.into(), strength })
    }
}

impl fmt::Display for LoraUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(expert) = self.expert {
            write!(f, "{expert}=")?;
        }
        write!(f, "{}", self.file.display())?;
        if self.strength == 1.0 { Ok(()) } else { write!(f, "@{}", self.strength) }
    }
}

/// A LoRA of a component: merged into its weights, or computed beside them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppliedLora {
    /// The name of its file, without the folder.
    pub name: String,
    /// BLAKE3 of its file, 64 hexadecimal digits.
    pub digest: String,
    /// Factor on its changes.
    pub strength: f32,
    /// Layers that it changes by products of factors.
    pub pairs: usize,
    /// Weights, biases and tables that it changes by stored differences.
    pub deltas: usize,
    /// Layers of the file that the model does not have.
    pub skipped: usize,
    /// The sum of the Frobenius norms of the changes, with the strength.
    pub change: f64,
    /// True if the changes are branches of the graphs, and the weights are those of the base bundle.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_branch: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_decide_the_expert_of_a_file() {
        for (name, expert) in [
            ("Wan22_T2V_HighNoise_v2.safetensors", Some(LoraExpert::HighNoise)),
            ("wan22-highnoise.safetensors", Some(LoraExpert::HighNoise)),
            ("lora.LOW.safetensors", Some(LoraExpert::LowNoise)),
            ("high2.safetensors", Some(LoraExpert::HighNoise)),
            ("high_and_low.safetensors", None),
            ("glow.safetensors", None),
            ("lowres_highway.safetensors", None),
            ("", None),
        ] {
            assert_eq!(LoraExpert::in_file_name(name), expert, "{name}");
        }
    }

    #[test]
    fn parts_that_are_not_stated_have_defaults() {
        let parsed = |text: &str| text.parse::<LoraUse>();
        assert_eq!(parsed("x.safetensors").unwrap(), LoraUse::new("x.safetensors"));
        let at = parsed("all=/a@b/x.safetensors").unwrap();
        assert_eq!(at, LoraUse { expert: Some(LoraExpert::All), ..LoraUse::new("/a@b/x.safetensors") });
        assert_eq!(parsed("mid=x.safetensors").unwrap().file, PathBuf::from("mid=x.safetensors"));
        assert_eq!(parsed("x@-0.5").unwrap().strength, -0.5);
        for (text, why) in
            [("x@nan", "not a number"), ("x@", "not a number"), ("high=", "no file"), ("@1", "no file")]
        {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_use_survives_being_written(strength in -4.0_f32..4.0, expert in 0_usize..4, file in "[a-z=@/]{1,12}x") {
            let expert = LoraExpert::ALL.get(expert).copied();
            // A text that begins with the name of an expert needs the expert to be stated.
            prop_assume!(expert.is_some() || !file.contains('='));
            let lora = LoraUse { expert, file: format!("{file}.safetensors").into(), strength };
            prop_assert_eq!(lora.to_string().parse::<LoraUse>().unwrap(), lora);
        }
    }
}
