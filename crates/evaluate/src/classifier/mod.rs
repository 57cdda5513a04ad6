//! The network whose features and answers judge clips, and its training.

mod augmentation;
mod loss;
mod model;
mod train;
mod weights;

pub use augmentation::Augmentation;
pub use loss::{Loss, cross_entropy};
pub(crate) use model::answers;
pub use model::{Classifier, FEATURES, LOGITS, Reading};
pub use train::{Progress, TrainConfig, train};
pub(crate) use weights::check as check_weights;
pub use weights::{read, shipped, write};
