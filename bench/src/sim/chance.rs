//! Repeatable randomness and the distributions that clients and engines are drawn from.

use orchestratord_engine::testing::Dice;

/// A seeded source of the usual distributions.
#[derive(Clone, Debug)]
pub struct Chance(Dice);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        let mut dice = Dice::new(seed ^ 0x5851_f42d_4c95_7f2d);
        dice.next_u64();
        Chance(dice)
    }

    /// From 0 up to but not including 1.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0.below(end)
    }

    pub fn happens(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Exponential with this mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Mean 0, standard deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.unit(), self.unit());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Log-normal with this median and this spread of the logarithm.
    pub fn lognormal(&mut self, median: f64, spread: f64) -> f64 {
        median * (spread * self.normal()).exp()
    }

    /// Pareto from `least` on: heavy-tailed for `shape` under 2.
    pub fn pareto(&mut self, least: f64, shape: f64) -> f64 {
        least * (1.0 - self.unit()).powf(-1.0 / shape)
    }
}
