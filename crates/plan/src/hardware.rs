//! Devices: peak rates as their makers publish them, and what of a peak a program reaches.

use serde::Serialize;

use crate::{Error, Result};

/// Share of the peak that matrix products, attention and convolutions reach on a GPU. On an H200 at the shapes of Wan 1.3B
/// (2026-11): attention 0.50 to 0.65, products 0.63 to 0.79, convolutions of the autoencoder 0.54 to 0.77.
const ACHIEVED_PRODUCTS: f64 = 0.6;
/// Share of the memory's bandwidth that streaming kernels reach on a GPU: there 0.70 to 0.90, a copy 0.89.
const ACHIEVED_BANDWIDTH: f64 = 0.8;
/// Share of a link's bandwidth that large collectives reach. Assumed, from published NCCL tests.
const ACHIEVED_LINK: f64 = 0.7;

/// A device. Rates are a second, sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hardware {
    /// Its name.
    pub name: String,
    /// Where the rates are from.
    pub source: &'static str,
    /// Operations of dense bf16 products; the f32 rate where there is no faster one.
    pub bf16_flops: f64,
    /// Operations of f32 arithmetic, without TF32.
    pub f32_flops: f64,
    /// Bytes of memory traffic.
    pub bandwidth: f64,
    /// Bytes to other devices in one direction; 0 where there are none.
    pub link: f64,
    /// Bytes of memory.
    pub memory: u64,
    /// Shares of the rates that are reached: products, memory, links.
    pub achieved: [f64; 3],
}

struct Published {
    name: &'static str,
    source: &'static str,
    bf16: f64,
    f32: f64,
    bandwidth: f64,
    link: f64,
    memory: u64,
}

/// bf16 rates are dense, without sparsity; NVLink is half of its two-way figure.
const PUBLISHED: [Published; 3] = [
    Published {
        name: "h100",
        source: "NVIDIA H100 data sheet, SXM5",
        bf16: 989e12,
        f32: 67e12,
        bandwidth: 3.35e12,
        link: 450e9,
        memory: 80_000_000_000,
    },
    Published {
        name: "h200",
        source: "NVIDIA H200 data sheet, SXM",
        bf16: 989e12,
        f32: 67e12,
        bandwidth: 4.8e12,
        link: 450e9,
        memory: 141_000_000_000,
    },
    Published {
        name: "a100",
        source: "NVIDIA A100 data sheet, 80 GB SXM",
        bf16: 312e12,
        f32: 19.5e12,
        bandwidth: 2.039e12,
        link: 300e9,
        memory: 80_000_000_000,
    },
];

impl Hardware {
    /// Names of the table's devices.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PUBLISHED.iter().map(|p| p.name)
    }

    /// A device of the table.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn published(name: &str) -> Result<Self> {
        let Some(p) = PUBLISHED.iter().find(|p| p.name == name) else {
            let names: Vec<&str> = Self::names().collect();
            return Err(Error::request(
                "--hardware",
                format!("no '{name}'"),
                format!("choose cpu, {}", names.join(", ")),
            ));
        };
        Ok(Hardware {
            name: p.name.into(),
            source: p.source,
            bf16_flops: p.bf16,
            f32_flops: p.f32,
            bandwidth: p.bandwidth,
            link: p.link,
            memory: p.memory,
            achieved: [ACHIEVED_PRODUCTS, ACHIEVED_BANDWIDTH, ACHIEVED_LINK],
        })
    }

    /// This machine, by a product and a copy that were measured on it: operations and bytes a second.
    pub fn measured(flops: f64, bandwidth: f64, memory: u64) -> Self {
        Hardware {
            name: "cpu".into(),
            source: "measured here: a matrix product and a copy",
            bf16_flops: flops,
            f32_flops: flops,
            bandwidth,
            link: 0.0,
            memory,
            achieved: [1.0; 3],
        }
    }

    /// Seconds of a call: what takes longer, its operations or its traffic (Williams et al., the roofline model, 2009).
    pub fn seconds(&self, call: &fewstep_ops::Call) -> f64 {
        let product = matches!(call.op, "linear" | "linear_gelu" | "attention" | "relative_attention" | "causal_conv");
        let rate = if product && call.element <= 2 { self.bf16_flops } else { self.f32_flops };
        (call.flops / (rate * self.achieved[0])).max(call.bytes / (self.bandwidth * self.achieved[1]))
    }

    /// Seconds to send or receive so many bytes; 0 without a link.
    pub fn transfer(&self, bytes: f64) -> f64 {
        if self.link > 0.0 { bytes / (self.link * self.achieved[2]) } else { 0.0 }
    }
}
