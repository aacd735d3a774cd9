//! What a task costs on its way to the engine, and a token on its way to the readers.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use orchestratord::admission::{Place, QueueWithMetrics, Waits};
use orchestratord::config::AdmissionPolicy;
use orchestratord::domain::task::Priority;
use orchestratord::infra::reactor::{Inbox, WakeAddress, WakeHub};
use orchestratord::infra::stream::{Claim, TaskStream};
use orchestratord::metrics::{Labels, Metrics};
use orchestratord::services::streaming::FrameBuffers;

struct Number(u64, Place);

impl Waits for Number {
    fn place(&self) -> &Place {
        &self.1
    }
}

fn ring(c: &mut Criterion) {
    let labels = Labels { engine: "cpu", engine_version: "1", pool_id: "p".into(), replica_id: "0" };
    let metrics = Arc::new(Metrics::new(labels));
    let (queue, mut waiting) = QueueWithMetrics::<Number>::new(256, AdmissionPolicy::Reject, metrics);
    let mut group = c.benchmark_group("ring");
    group.throughput(Throughput::Elements(1));
    group.bench_function("enqueue, drain, take", |b| {
        b.iter(|| {
            queue.enqueue(Priority::Interactive, |_| Number(black_box(7), Place::default())).expect("there is room");
            waiting.drain(|_| {});
            black_box(waiting.take(Priority::Interactive).map(|w| w.entry.0))
        });
    });
    group.finish();
}

fn stream(c: &mut Criterion) {
    let mut buffers = FrameBuffers::default();
    let frame = buffers.token(17, 15, " hello", None).to_vec();
    let mut group = c.benchmark_group("stream");
    let tokens = 64;
    group.throughput(Throughput::Elements(tokens));
    group.bench_function("append and read 64 tokens", |b| {
        let make = || {
            let (hub, address) = WakeHub::for_tests();
            let (stream, writer) = TaskStream::new(hub);
            let reader = stream.attach(address, None).expect("it is the first reader");
            (writer, reader)
        };
        let run = |(mut writer, mut reader): (orchestratord::infra::stream::StreamWriter, _)| {
            let mut bytes = 0;
            for _ in 0..tokens {
                writer.append(black_box(&frame)).expect("the stream is open");
                while let Claim::Bytes(span) = orchestratord::infra::stream::StreamReader::claim(&mut reader) {
                    bytes += span.as_slice().len();
                }
            }
            bytes
        };
        b.iter_batched(make, run, BatchSize::SmallInput);
    });
    group.finish();
}

/// Streams that got a token are marked, their reactor is rung once, and it finds out whom to wake: both halves, with the
/// system calls of both, on one thread.
fn wake(c: &mut Criterion) {
    let mut group = c.benchmark_group("wake");
    for streams in [1usize, 64, 1000] {
        let inbox = Inbox::new(streams).expect("there are descriptors");
        let hub = WakeHub::new(vec![inbox.clone()]);
        let addresses: Vec<_> = (0..streams).map(|slot| WakeAddress::of(0, slot as u32)).collect();
        group.throughput(Throughput::Elements(streams as u64));
        group.bench_function(format!("post, ring and drain {streams}"), |b| {
            b.iter(|| {
                addresses.iter().for_each(|address| hub.post(*address));
                hub.ring_all();
                let mut woken = 0;
                inbox.drain(|_| usize::MAX, |slot| woken += black_box(slot).min(1));
                woken
            });
        });
    }
    group.finish();
}

criterion_group!(benches, ring, stream, wake);
criterion_main!(benches);
