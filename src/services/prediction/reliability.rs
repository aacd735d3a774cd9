//! How far predictions were off, and what that makes of the next one.

/// A running mean and spread of ln(actual / predicted).
#[derive(Clone, Debug, PartialEq)]
pub struct LogRatio {
    mean: f64,
    variance: f64,
    count: u32,
    pull_max: f64,
    /// The first outcomes, of which each may pull as much as it wants: they find out where about the middle is.
    free: u32,
}

impl LogRatio {
    /// Weight of a new outcome once there are enough.
    const WEIGHT: f64 = 0.02;
    /// Most that one outcome pulls at the mean of one that is near the median, before it is weighed.
    const PULL_MAX: f64 = 0.05;

    pub fn new(spread: f64) -> LogRatio {
        LogRatio { mean: 0.0, variance: spread * spread, count: 0, pull_max: f64::MAX, free: u32::MAX }
    }

    /// One that comes to rest near the median: a few that were far off say little about most.
    pub fn near_median(spread: f64, free: u32) -> LogRatio {
        LogRatio { pull_max: Self::PULL_MAX, free, ..LogRatio::new(spread) }
    }

    /// One that learns how far off predictions are and leaves them as they are.
    pub fn spread_only(spread: f64) -> LogRatio {
        LogRatio { pull_max: 0.0, free: 0, ..LogRatio::new(spread) }
    }

    pub fn observe(&mut self, predicted: f64, actual: f64) {
        let error = (actual.max(1e-3) / predicted.max(1e-3)).ln().clamp(-2.0, 2.0);
        self.count = self.count.saturating_add(1);
        let weight = Self::WEIGHT.max(1.0 / (f64::from(self.count) + 8.0));
        let off = error - self.mean;
        let pull_max = if self.count > self.free { self.pull_max } else { f64::MAX };
        self.mean += weight * off.clamp(-pull_max, pull_max);
        self.variance = (1.0 - weight) * (self.variance + weight * off * off);
    }

    /// What to multiply a prediction with.
    pub fn factor(&self) -> f64 {
        self.mean.exp()
    }

    /// Standard deviation over mean that remains.
    pub fn spread(&self) -> f64 {
        self.variance.sqrt()
    }
}

/// How much longer than computed batch work waits for its turn: what interactive work leaves of the slots is not all of use,
/// for who was put aside takes it up first, and computes anew what it had.
///
/// Each outcome moves it a little, up or down by the same, so that it settles where half of the turns come later. Turns
/// that age or a deadline forestalled are known to be later than that, and no more.
#[derive(Clone, Debug, PartialEq)]
pub struct Drag {
    ln: f64,
}

impl Default for Drag {
    fn default() -> Drag {
        Drag { ln: 0.7 }
    }
}

impl Drag {
    const PULL: f64 = 0.005;
    const LN_MAX: f64 = 3.0;
    /// So near to the time when age brings a turn, age has brought it.
    const AGED: f64 = 0.97;

    pub fn factor(&self) -> f64 {
        self.ln.exp()
    }

    /// Learns from a task that was to wait `turn_us` for its turn, with this drag, or `aged_us` until its age brought it.
    pub fn observe(&mut self, turn_us: f64, aged_us: f64, waited_us: f64, started: bool) {
        let by_age = started && waited_us >= Self::AGED * aged_us;
        // It would have waited longer: that tells something only if it was to be sooner.
        let open = !started || by_age;
        if open && waited_us < turn_us {
            return;
        }
        self.ln = (self.ln + Self::PULL * (waited_us - turn_us).signum()).clamp(0.0, Self::LN_MAX);
    }
}

/// What became of predictions of one probability: a map from what was computed to what came true.
///
/// Piecewise linear over the log odds, with forgetting; where little was seen it is the identity.
#[derive(Clone, Debug, PartialEq)]
pub struct Reliability {
    came_true: [f32; Reliability::KNOTS],
    seen: [f32; Reliability::KNOTS],
}

impl Default for Reliability {
    fn default() -> Reliability {
        let prior: [f32; Self::KNOTS] = std::array::from_fn(|k| Self::PRIOR * Self::at(k));
        Reliability { came_true: prior, seen: [Self::PRIOR; Self::KNOTS] }
    }
}

impl Reliability {
    const KNOTS: usize = 17;
    /// Log odds of the outermost knots.
    const REACH: f32 = 4.8;
    /// What the assumption that predictions are true is worth, in outcomes.
    const PRIOR: f32 = 12.0;
    const KEPT: f32 = 0.997;

    fn at(knot: usize) -> f32 {
        let step = 2.0 * Self::REACH / (Self::KNOTS - 1) as f32;
        1.0 / (1.0 + (Self::REACH - knot as f32 * step).exp())
    }

    /// The knot below and how far towards the next.
    fn place(probability: f32) -> (usize, f32) {
        let p = probability.clamp(1e-4, 1.0 - 1e-4);
        let odds = (p / (1.0 - p)).ln().clamp(-Self::REACH, Self::REACH);
        let x = (odds + Self::REACH) / (2.0 * Self::REACH) * (Self::KNOTS - 1) as f32;
        let knot = (x as usize).min(Self::KNOTS - 2);
        (knot, x - knot as f32)
    }

    pub fn observe(&mut self, computed: f64, came_true: bool) {
        let (knot, part) = Self::place(computed as f32);
        for (k, weight) in [(knot, 1.0 - part), (knot + 1, part)] {
            let (prior, kept) = (Self::PRIOR, 1.0 - (1.0 - Self::KEPT) * weight);
            // Forgetting goes towards the assumption, not towards nothing.
            self.seen[k] = prior + (self.seen[k] - prior) * kept + weight;
            self.came_true[k] = prior * Self::at(k) + (self.came_true[k] - prior * Self::at(k)) * kept;
            self.came_true[k] += weight * f32::from(u8::from(came_true));
        }
    }

    pub fn correct(&self, computed: f64) -> f64 {
        let (knot, part) = Self::place(computed as f32);
        let share = |k: usize| f64::from(self.came_true[k] / self.seen[k]);
        let part = f64::from(part);
        ((1.0 - part) * share(knot) + part * share(knot + 1)).clamp(0.0, 1.0)
    }
}

/// Abramowitz and Stegun 7.1.26; absolute error under 2e-7.
pub fn normal_cdf(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    if x > 5.0 {
        return if z < 0.0 { 0.0 } else { 1.0 };
    }
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let erf = 1.0 - poly * (-x * x).exp();
    if z < 0.0 { 0.5 * (1.0 - erf) } else { 0.5 * (1.0 + erf) }
}

/// Below which value a standard normal variable is with this probability, for the lower half: up to 0.5.
///
/// Abramowitz and Stegun 26.2.23; absolute error under 4.5e-4.
pub fn normal_quantile_low(probability: f64) -> f64 {
    let t = (-2.0 * probability.ln()).sqrt();
    let above = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let below = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    above / below - t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_learned_and_what_remains_is_the_spread() {
        let mut ratio = LogRatio::new(0.5);
        for n in 0..2000 {
            ratio.observe(100.0, if n % 2 == 0 { 160.0 } else { 140.0 });
        }
        assert!((ratio.factor() - 1.5).abs() < 0.03, "{}", ratio.factor());
        assert!((ratio.spread() - 0.067).abs() < 0.02, "{}", ratio.spread());
    }

    #[test]
    fn a_drag_settles_where_half_of_the_turns_come_later() {
        let mut drag = Drag::default();
        for n in 0..4000u32 {
            let told = 100.0 * drag.factor();
            drag.observe(told, 1e9, 300.0 + f64::from(n * 37 % 101), true);
        }
        assert!((drag.factor() - 3.5).abs() < 0.15, "{}", drag.factor());
        let before = drag.clone();
        drag.observe(1000.0, 500.0, 500.0, true);
        drag.observe(1000.0, 1e9, 400.0, false);
        assert_eq!(drag, before, "what is only known to be later than it was teaches nothing here");
        drag.observe(300.0, 500.0, 500.0, true);
        assert!(drag.factor() > before.factor(), "age came first, though the turn was to come sooner");
    }

    #[test]
    fn without_outcomes_a_probability_stands_as_it_is() {
        let map = Reliability::default();
        for p in [0.01, 0.1, 0.37, 0.5, 0.9, 0.99] {
            assert!((map.correct(p) - p).abs() < 0.02, "{p} became {}", map.correct(p));
        }
    }

    #[test]
    fn probabilities_that_proved_wrong_are_put_right() {
        let mut map = Reliability::default();
        for n in 0..3000u32 {
            map.observe(0.7, n.is_multiple_of(2));
        }
        assert!((map.correct(0.7) - 0.5).abs() < 0.05, "{}", map.correct(0.7));
        assert!((map.correct(0.05) - 0.05).abs() < 0.03, "far away nothing was learned");
    }

    #[test]
    fn the_quantile_undoes_the_distribution() {
        for z in [-4.5, -3.0, -1.96, -1.0, -0.3, 0.0] {
            assert!((normal_quantile_low(normal_cdf(z)) - z).abs() < 3e-3, "{z}");
        }
    }

    #[test]
    fn the_normal_distribution_has_its_known_values() {
        for (z, p) in [(0.0, 0.5), (1.0, 0.841_344_7), (-1.96, 0.024_997_9), (3.0, 0.998_650_1), (-9.0, 0.0)] {
            assert!((normal_cdf(z) - p).abs() < 1e-6);
        }
    }
}
