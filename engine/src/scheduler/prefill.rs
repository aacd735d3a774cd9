//! Which prompts the rows of a step are for.

/// Shares `rows_max` rows among prompts with so many rows to go each, `pending` in order of admission; `rows[i]` is what
/// prompt `i` gets. No row is left over while somebody wants it.
///
/// The oldest prompt comes first, but up to half of the rows go to prompts that are shorter than what is left of it, the
/// shortest first. So a line does not wait while a book is read, a book takes twice its time at most however many lines come,
/// and prompts of one length are read one after the other, which is sooner for each but the last than all at once.
pub fn share_rows(pending: &[usize], rows_max: usize, rows: &mut Vec<usize>) {
    rows.clear();
    rows.resize(pending.len(), 0);
    let Some(oldest) = pending.first() else { return };
    let mut left = rows_max;
    let mut for_shorter = rows_max / 2;
    // Every turn looks for the shortest that has nothing yet: there are as few prompts as slots, and mostly one or two.
    while for_shorter > 0 {
        let shorter = |i: &usize| rows[*i] == 0 && pending[*i] > 0 && pending[*i] < *oldest;
        let Some(next) = (1..pending.len()).filter(shorter).min_by_key(|i| pending[*i]) else { break };
        rows[next] = pending[next].min(for_shorter);
        for_shorter -= rows[next];
        left -= rows[next];
    }
    for (rows, pending) in rows.iter_mut().zip(pending) {
        let more = (pending - *rows).min(left);
        *rows += more;
        left -= more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dice;

    fn shared(pending: &[usize], rows_max: usize) -> Vec<usize> {
        let mut rows = vec![7];
        share_rows(pending, rows_max, &mut rows);
        rows
    }

    #[test]
    fn half_is_for_shorter_ones_and_the_rest_in_order() {
        assert!(shared(&[], 10).is_empty());
        assert_eq!(shared(&[100], 10), [10]);
        assert_eq!(shared(&[3], 10), [3]);
        assert_eq!(shared(&[100, 3], 10), [7, 3]);
        assert_eq!(shared(&[100, 50, 4], 10), [5, 1, 4]);
        assert_eq!(shared(&[100, 100, 101], 10), [10, 0, 0], "equal ones one after the other");
        assert_eq!(shared(&[4, 100, 3], 10), [4, 3, 3]);
        assert_eq!(shared(&[100, 3], 1), [1, 0], "one row is the oldest one's");
        assert_eq!(shared(&[100, 3], 0), [0, 0]);
    }

    #[test]
    fn no_row_is_left_over_and_the_oldest_has_half() {
        let mut dice = Dice::new(5);
        for _ in 0..2000 {
            let pending: Vec<usize> = (0..1 + dice.below(6)).map(|_| dice.below(60)).collect();
            let rows_max = dice.below(80);
            let rows = shared(&pending, rows_max);
            assert_eq!(rows.iter().sum::<usize>(), rows_max.min(pending.iter().sum()), "{pending:?} {rows_max}");
            assert!(rows.iter().zip(&pending).all(|(rows, pending)| rows <= pending), "{pending:?} {rows_max}");
            assert!(rows[0] >= pending[0].min(rows_max.div_ceil(2)), "{pending:?} {rows_max}");
        }
    }
}
