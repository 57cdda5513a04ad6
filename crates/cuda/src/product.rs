/// The element type of a factor or a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// bfloat16, accumulated in single precision.
    Bf16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl Element {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Element::Bf16 => 2,
            Element::F32 => 4,
            Element::F64 => 8,
        }
    }
}

/// A factor: where it starts, and whether it is stored transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// The address of its first element.
    pub address: u64,
    /// Whether rows and columns are exchanged in memory.
    pub transposed: bool,
}

/// C (+)= A·B (+ bias), or gelu of that, dense and row-major: A `[m, k]`, B `[k, n]`, C `[m, n]`, bias `[n]` added to every row.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// The inner extent.
    pub k: usize,
    /// The first factor.
    pub a: Operand,
    /// The second factor.
    pub b: Operand,
    /// The product's address.
    pub c: u64,
    /// The type of both factors.
    pub factors: Element,
    /// The type of C; the bias has the type of the factors.
    pub result: Element,
    /// Whether the product is added to what C holds.
    pub accumulate: bool,
    /// The bias, if any.
    pub bias: Option<u64>,
    /// Whether C is the GELU by the hyperbolic tangent of A·B + bias, before that is rounded; bf16 alone, n a multiple of 8,
    /// nothing accumulated. Its bits do not depend on `before_gelu`.
    pub gelu: bool,
    /// Where A·B + bias goes `[m, n]`, of the type of C, if it is wanted beside its GELU.
    pub before_gelu: Option<u64>,
}
