//! Steps of the engine over the built-in model: decode at several widths, and a prompt.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orchestratord_bench::{Ignore, engine, long_request};
use orchestratord_engine::{Grammar, SequenceRequest};

/// Steps of `width` sequences; a new set is admitted when the context is full.
fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode step");
    for width in [1u64, 16] {
        group.throughput(Throughput::Elements(width));
        group.bench_function(format!("{width} rows"), |b| {
            let mut engine = engine(16);
            b.iter(|| {
                if engine.is_idle() {
                    (0..width).for_each(|id| _ = engine.admit(long_request(id, 8)).expect("the engine is empty"));
                }
                black_box(engine.step(&mut Ignore).expect("the CPU does not fail").sampled)
            });
        });
    }
    group.finish();
}

/// The same steps with a grammar: its masks are made on a thread beside the forward pass. That any letter may come says what
/// masks cost, for the tree of the grammar stays small.
fn masked(c: &mut Criterion) {
    let mut group = c.benchmark_group("masked decode step");
    for width in [1u64, 16] {
        group.throughput(Throughput::Elements(width));
        group.bench_function(format!("{width} rows"), |b| {
            let mut engine = engine(16);
            let constraint =
                engine.model().constraint(Grammar::Regex("[a-zA-Z .,]{16000}")).expect("a regular expression");
            b.iter(|| {
                if engine.is_idle() {
                    for id in 0..width {
                        let request = SequenceRequest { constraint: Some(constraint.clone()), ..long_request(id, 8) };
                        engine.admit(request).expect("the engine is empty");
                    }
                }
                black_box(engine.step(&mut Ignore).expect("the CPU does not fail").sampled)
            });
        });
    }
    group.finish();
}

/// One step of the scheduler with a full budget of rows: fifteen sequences decode while a prompt is prefilled.
fn scheduler(c: &mut Criterion) {
    let mut group = c.benchmark_group("scheduler step");
    group.sample_size(10);
    group.bench_function("15 decode rows and a 113-row piece of prompt", |b| {
        b.iter_batched(
            || {
                let mut engine = engine(16);
                (0..15).for_each(|id| _ = engine.admit(long_request(id, 4)).expect("the engine is empty"));
                engine.step(&mut Ignore).expect("the CPU does not fail");
                _ = engine.admit(long_request(99, 1000)).expect("a slot is free");
                engine
            },
            |mut engine| {
                let report = engine.step(&mut Ignore).expect("the CPU does not fail");
                assert_eq!((report.rows_decode, report.rows_prefill), (15, 113));
                engine
            },
            criterion::BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, decode, masked, scheduler);
criterion_main!(benches);
