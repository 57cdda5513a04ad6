/// How the bulk copy engine sees an array: opaque to all but the driver; a kernel takes it by value.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct TensorMap(pub(crate) [u64; 16]);

/// An array of bf16 and the box of it that one copy brings to shared memory, swizzled by the bytes
/// of a row of the box: 128, or 64 where that has 32 elements.
#[derive(Clone, Debug)]
pub struct Tiling {
    /// Where the array starts; 16-byte aligned.
    pub address: u64,
    /// Extents, fastest axis first.
    pub extents: Vec<u64>,
    /// Bytes between neighbours along each axis but the first; multiples of 16.
    pub strides: Vec<u64>,
    /// The box, fastest axis first.
    pub tile: Vec<u32>,
}
