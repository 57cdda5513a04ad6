//! Every case on a device that is emulated on the host.

use fewstep_tensor::Device;
use fewstep_tensor::cuda::EMULATED;
use fewstep_verify::{Row, ops};

fn failures(rows: &[Row]) -> Vec<String> {
    rows.iter().filter(|r| !r.ok).map(|r| format!("{} {} {}: {:?}", r.what, r.case, r.dtype, r.failure)).collect()
}

#[test]
fn t() {
    let device = if std::env::var("DEV").is_ok_and(|d| d == "gpu") { EMULATED } else { Device::Cpu };
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut bad = Vec::new();
    for (seed, case) in ops::cases(device).into_iter().enumerate() {
        if !case.op().name().contains(&only) || (device != Device::Cpu && case.is_large()) {
            continue;
        }
        for check in ops::checks_of(device, case, seed as u64) {
            let rows = check.run();
            for r in &rows {
                println!("{:20} {:5} {:9.2e} {:9.2e} {:6.2}s {} {}", r.what, r.dtype, r.error, r.allowed, r.seconds, r.ok, &r.case.chars().take(100).collect::<String>());
            }
            bad.extend(failures(&rows));
        }
    }
    let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures"));
    for check in fewstep_verify::numbers::checks(device).into_iter().chain(fewstep_verify::fixtures::checks(device, folder).unwrap()) {
        if !format!("{} {}", check.what(), check.case()).contains(&only) { continue; }
        let rows = check.run();
        for r in &rows {
            println!("{:20} {:5} {:9.2e} {:9.2e} {:6.2}s {} {}", r.what, r.dtype, r.error, r.allowed, r.seconds, r.ok, r.case);
        }
        bad.extend(failures(&rows));
    }
    for b in &bad { println!("FAILED {}", b.chars().take(600).collect::<String>()); }
    assert!(bad.is_empty());
}
