//! Every op by the suite of `fewstep-ops`, in every dtype of a device.

mod attention;
mod case;
mod cases;
mod window;

pub(crate) use attention::Unfused;

use std::sync::Arc;

use fewstep_tensor::Device;

use crate::{Check, dtypes};
pub use case::Case;

/// Every case of every op on a device.
pub fn cases(device: Device) -> Vec<Case> {
    cases::all(device)
}

/// A check of every case, each also on windows of larger tensors, whose first elements are not aligned.
pub fn checks(device: Device) -> Vec<Check> {
    cases(device).into_iter().enumerate().flat_map(|(seed, case)| checks_of(device, case, seed as u64)).collect()
}

/// The checks of one case.
pub fn checks_of(device: Device, case: Case, seed: u64) -> Vec<Check> {
    let case = Arc::new(case);
    let places: &[bool] = if case.windows() { &[false, true] } else { &[false] };
    let check = |&window: &bool| {
        let dtypes: Vec<_> = dtypes(device).iter().copied().filter(|&dtype| case.has(dtype)).collect();
        let (launched, proven) = (case.clone(), case.clone());
        let name = if window { format!("{}, in windows", case.name()) } else { case.name().to_string() };
        Check::new(
            (case.op().name(), name),
            &dtypes,
            move |dtype| launched.launch(device, dtype, window, seed),
            move |dtype| proven.prove(device, dtype, window, seed),
        )
    };
    places.iter().map(check).collect()
}
