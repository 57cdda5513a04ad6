//! What a distillation reads its examples from.

use fewstep_data::Split;
use fewstep_distill::examples::ExampleSource;
use fewstep_nn::wan::WanConfig;

use crate::digits::{DigitsSource, suits_clips};
use crate::error::{Error, Result};
use crate::settings::DataSettings;

/// The source of examples that the settings name, for a network of these extents.
///
/// # Errors
/// If the examples do not suit the network or cannot be read.
pub fn example_source(data: &DataSettings, network: &WanConfig) -> Result<Box<dyn ExampleSource>> {
    match data {
        DataSettings::Digits(digits) => {
            suits_clips(network).map_err(|(key, problem)| {
                Error::Argument(format!(
                    "the teacher's network does not suit the clips of data.digits: {key}: {problem}"
                ))
            })?;
            Ok(Box::new(DigitsSource::new(Split::Train, digits.seed)?))
        }
        DataSettings::Shards(shards) => Err(Error::Argument(format!(
            "{}: this build does not read shards; use data = {{ digits = {{ seed = 0 }} }}",
            shards.path.display()
        ))),
    }
}
