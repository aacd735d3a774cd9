//! One vector for a whole text: the hidden states of its tokens, pooled and brought to length one.

/// Which hidden states the vector is made of. They are those after the last norm, as `last_hidden_state` of `transformers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// That of the last token, which has seen all others.
    #[default]
    Last,
    /// Their mean.
    Mean,
}

/// Takes in hidden states one by one, in order, so that the sum does not depend on how a text was cut into steps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool {
    sum: Vec<f64>,
    count: usize,
}

impl Pool {
    /// The hidden state at `position`; the first position begins anew.
    pub fn take(&mut self, pooling: Pooling, position: usize, hidden: &[f32]) {
        if position == 0 || pooling == Pooling::Last {
            self.sum.clear();
            self.sum.resize(hidden.len(), 0.0);
            self.count = 0;
        }
        self.sum.iter_mut().zip(hidden).for_each(|(sum, x)| *sum += f64::from(*x));
        self.count += 1;
    }

    /// The vector of length one in the direction of what was taken in. A sum's direction is that of its mean.
    pub fn finish(&self) -> Vec<f32> {
        normalized(&self.sum)
    }
}

/// The first elements of a vector, brought to length one again: what models trained for several lengths want.
///
/// Source: Kusupati et al. 2022 (Matryoshka representation learning).
pub fn shortened(vector: &[f32], len: usize) -> Vec<f32> {
    normalized(&vector[..len.min(vector.len())].iter().map(|x| f64::from(*x)).collect::<Vec<f64>>())
}

fn normalized(vector: &[f64]) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    // Nothing has no direction.
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    vector.iter().map(|x| (x * scale) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_have_length_one_whatever_they_are_made_of() {
        let states = [[3.0, 4.0, 0.0f32], [1.0, 0.0, 2.0]];
        for (pooling, wanted) in [(Pooling::Last, [1.0, 0.0, 2.0]), (Pooling::Mean, [4.0, 4.0, 2.0f64])] {
            let mut pool = Pool::default();
            // A text that was begun before is forgotten.
            pool.take(pooling, 0, &[9.0; 3]);
            states.iter().enumerate().for_each(|(at, state)| pool.take(pooling, at, state));
            let length = wanted.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert_eq!(pool.finish(), wanted.map(|x| (x / length) as f32), "{pooling:?}");
        }
        assert_eq!(shortened(&[0.6, 0.8, 0.0], 1), [1.0]);
        assert_eq!(shortened(&[0.0; 3], 2), [0.0; 2]);
    }
}
