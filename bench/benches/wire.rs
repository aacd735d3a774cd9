//! What the wire costs: parsing heads and bodies, and writing the frame of a token.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use orchestratord::api::types::{TaskRequest, from_json};
use orchestratord::infra::http::head::{HeadIndex, find_end};
use orchestratord::infra::http::sse;
use orchestratord::services::streaming::FrameBuffers;
use orchestratord_bench::{HEAD, task_body};

fn head(c: &mut Criterion) {
    let mut group = c.benchmark_group("head");
    group.throughput(Throughput::Bytes(HEAD.len() as u64));
    let mut index = HeadIndex::default();
    group.bench_function("find and parse", |b| {
        b.iter(|| {
            let bytes = black_box(HEAD.as_bytes());
            let len = find_end(bytes, 0, 16 * 1024).expect("it is legal").expect("it is complete");
            black_box(index.parse(&bytes[..len], 64).expect("it is legal").path().len())
        });
    });
    group.finish();
}

fn body(c: &mut Criterion) {
    let mut group = c.benchmark_group("body");
    for (name, prompt_len) in [("600 B", 200), ("32 KB", 32 * 1024), ("1 MB", 1000 * 1000)] {
        let body = task_body(prompt_len);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| {
            let parse = |mut bytes: Vec<u8>| from_json::<TaskRequest>(&mut bytes).expect("it is legal").check().is_ok();
            b.iter_batched(|| body.clone(), parse, BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn frame(c: &mut Criterion) {
    let mut group = c.benchmark_group("sse");
    group.throughput(Throughput::Elements(1));
    let mut buffers = FrameBuffers::default();
    group.bench_function("token frame", |b| {
        b.iter(|| black_box(buffers.token(black_box(17), black_box(15), black_box(" hello"), None).len()));
    });
    let mut out = Vec::new();
    group.bench_function("event", |b| {
        b.iter(|| {
            out.clear();
            sse::write_event(&mut out, black_box(17), "token", black_box(br#"{"t":" hello","i":15}"#));
            black_box(out.len())
        });
    });
    group.finish();
}

criterion_group!(benches, head, body, frame);
criterion_main!(benches);
