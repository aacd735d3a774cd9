//! Steps of the engine over the built-in model: decode at several widths, and a prompt.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orchestratord_bench::{Ignore, engine, long_request};

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

criterion_group!(benches, decode, scheduler);
criterion_main!(benches);
