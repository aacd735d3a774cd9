//! The tensor types that can be read, and their numbers.

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `F32`.
    Bf16,
    /// Bytes with four bits of exponent and three of fraction (E4M3), a single-precision scale for 128.
    F8,
    /// 4 bits an element, a scale for 32.
    Q4_0,
    /// 4 bits an element, a scale and a least value for 32.
    Q4_1,
    /// 5 bits an element, a scale for 32.
    Q5_0,
    /// 5 bits an element, a scale and a least value for 32.
    Q5_1,
    /// Signed bytes, a scale for 32.
    Q8_0,
    /// 2 bits an element, 4-bit scales and minimums for 16, scales of those for 256.
    Q2K,
    /// 3 bits an element, 6-bit scales for 16, a scale of those for 256.
    Q3K,
    /// 4 bits an element, 6-bit scales and minimums for 32, scales of those for 256.
    Q4K,
    /// 5 bits an element, otherwise as `Q4K`.
    Q5K,
    /// 6 bits an element, 8-bit scales for 16, a scale of those for 256.
    Q6K,
    /// 4 bits an element that index a table of values, a scale for 32.
    Iq4Nl,
    /// As `Iq4Nl` with 6-bit scales, and a scale of those for 256.
    Iq4Xs,
}

/// Type, code in a file, name as llama.cpp prints it, elements that are stored together and their bytes.
const TYPES: [(TensorType, u32, &str, usize, usize); 16] = [
    (TensorType::F32, 0, "F32", 1, 4),
    (TensorType::F16, 1, "F16", 1, 2),
    (TensorType::Bf16, 30, "BF16", 1, 2),
    // No GGUF file has it: the code is one of our own.
    (TensorType::F8, 0x6f38, "F8_E4M3", 128, 132),
    (TensorType::Q4_0, 2, "Q4_0", 32, 18),
    (TensorType::Q4_1, 3, "Q4_1", 32, 20),
    (TensorType::Q5_0, 6, "Q5_0", 32, 22),
    (TensorType::Q5_1, 7, "Q5_1", 32, 24),
    (TensorType::Q8_0, 8, "Q8_0", 32, 34),
    (TensorType::Q2K, 10, "Q2_K", 256, 84),
    (TensorType::Q3K, 11, "Q3_K", 256, 110),
    (TensorType::Q4K, 12, "Q4_K", 256, 144),
    (TensorType::Q5K, 13, "Q5_K", 256, 176),
    (TensorType::Q6K, 14, "Q6_K", 256, 210),
    (TensorType::Iq4Nl, 20, "IQ4_NL", 32, 18),
    (TensorType::Iq4Xs, 23, "IQ4_XS", 256, 136),
];

impl TensorType {
    /// Every type that this engine reads.
    pub fn all() -> impl Iterator<Item = TensorType> {
        TYPES.iter().map(|row| row.0)
    }

    /// The type with this code in a GGUF file, if it is one of these.
    pub fn from_code(code: u32) -> Option<TensorType> {
        TYPES.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    fn row(self) -> &'static (TensorType, u32, &'static str, usize, usize) {
        TYPES.iter().find(|row| row.0 == self).expect("every type has a row")
    }

    /// Code in a file.
    pub fn code(self) -> u32 {
        self.row().1
    }

    /// Name as llama.cpp prints it.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements that are stored together.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of one such group.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }
}
