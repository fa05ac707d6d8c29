//! Numbers from a seed or from chosen bytes, the same on every machine.

/// xorshift64*: small, and good enough to choose what happens.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
    /// Bytes that decide first, as long as there are some.
    script: std::vec::IntoIter<u8>,
}

impl Random {
    /// The numbers of one step of a schedule. Each step has its own, so that leaving one out does
    /// not change the others.
    #[must_use]
    pub fn new(seed: u64, step: u32) -> Self {
        // Mixed as in splitmix64, so that neighbouring seeds start far apart.
        let mut mixed = seed
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(u64::from(step).wrapping_mul(0xbf58_476d_1ce4_e5b9));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self {
            state: (mixed ^ (mixed >> 31)) | 1,
            script: Vec::new().into_iter(),
        }
    }

    /// Numbers from these bytes, mostly one byte each, and then from a fixed seed. So a changed
    /// byte changes one decision.
    #[must_use]
    pub fn scripted(bytes: &[u8]) -> Self {
        Self {
            script: Vec::from(bytes).into_iter(),
            ..Self::new(0, 0)
        }
    }

    #[must_use]
    pub fn is_scripted(&self) -> bool {
        !self.script.as_slice().is_empty()
    }

    pub fn number(&mut self) -> u64 {
        if self.is_scripted() {
            return self.read(8);
        }
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: usize) -> usize {
        if self.is_scripted() {
            let byte_count = if limit <= 256 { 1 } else { 3 };
            let scaled = self.read(byte_count) * (limit as u64);
            return usize::try_from(scaled >> (8 * byte_count)).expect("below a usize");
        }
        // The upper half has the better bits, and the upper half of the product is below the limit.
        let scaled = (self.number() >> 32) * (limit as u64);
        usize::try_from(scaled >> 32).expect("below a usize")
    }

    /// The next bytes as a number, filled up with zeros.
    fn read(&mut self, byte_count: usize) -> u64 {
        let bytes = self.script.by_ref().take(byte_count);
        let number = |sum: u64, (at, byte): (usize, u8)| sum | u64::from(byte) << (8 * at);
        bytes.enumerate().fold(0, number)
    }

    /// A number below `limit`, which is at most 256.
    pub fn small(&mut self, limit: usize) -> u8 {
        u8::try_from(self.below(limit)).expect("a limit of at most 256")
    }

    /// True once in `count` times.
    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// One of these; `None` if there are none.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len())])
    }

    /// How much of `len` bytes is moved at once: often all, sometimes one, at least one.
    pub fn part(&mut self, len: usize) -> usize {
        match self.below(8) {
            _ if len <= 1 => len,
            0 => 1,
            1 | 2 => 1 + self.below(len),
            _ => len,
        }
    }
}
