//! A guardian in virtual time.

use super::*;
use crate::fixtures::generation;

const LEASE: Duration = Duration::from_secs(2);

fn terms() -> Terms {
    Terms::new(LEASE)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> MonoTime {
    MonoTime::since_boot(ms(millis))
}

fn until(number: u64, fence_at: MonoTime) -> Guard {
    Guard::Until { generation: generation(number), fence_at }
}

fn crash() -> Ended {
    Ended::Crashed("signal 9".to_owned())
}

fn new() -> Guardian {
    Guardian::new(Rules { terms: terms(), watchdog: None }, at(0))
}

/// Its worker runs and has said at 20 s what it guards; the deadline.
fn guarding() -> (Guardian, MonoTime) {
    let mut guardian = new();
    assert!(guardian.step(at(0)).start_worker.is_some());
    guardian.worker_started(at(0));
    guardian.alive(at(19_900), at(20_000));
    let fence_at = at(19_900) + terms().hold();
    guardian.told(until(3, fence_at), at(20_000));
    (guardian, fence_at)
}

/// Steps whenever it wants to, up to that time; everything it wanted, with the time.
fn run(guardian: &mut Guardian, from: MonoTime, to: MonoTime) -> Vec<(MonoTime, Step)> {
    let (mut now, mut steps) = (from, Vec::new());
    for _ in 0..1000 {
        let step = guardian.step(now);
        let wake_at = step.wake_at;
        let wants =
            step.kill_worker || step.fence.is_some() || step.start_worker.is_some() || step.end.is_some();
        if wants || step.pet {
            steps.push((now, step));
        }
        match wake_at {
            Some(at) if at <= to && at > now => now = at,
            Some(_) | None => return steps,
        }
    }
    panic!("it never rests: {steps:?}");
}

#[test]
fn a_silent_worker_does_not_move_the_deadline() {
    let (mut guardian, fence_at) = guarding();
    assert_eq!(guardian.step(at(20_000)).wake_at, Some(fence_at + WORKER_HEAD_START));
    assert_eq!(run(&mut guardian, at(20_000), fence_at), []);
    let step = guardian.step(fence_at + WORKER_HEAD_START);
    assert!(step.fence.as_ref().is_some_and(|reason| reason.contains("generation 3")), "{step:?}");
    // It may have been stopped in the middle of something.
    assert!(step.kill_worker && step.start_worker.is_none(), "{step:?}");
}

#[test]
fn the_guardian_is_done_before_any_promise_ends() {
    assert!(WORKER_HEAD_START * 2 <= GUARDIAN_SLACK);
    let (guardian, fence_at) = guarding();
    let begins = guardian.fences_at().unwrap();
    assert!(begins > fence_at);
    let done = begins + (GUARDIAN_SLACK - WORKER_HEAD_START) + KILL_BUDGET;
    // Promised at 19.9 s at the earliest; the rest of the lease is for the rates of clocks.
    assert!(done < at(19_900) + LEASE);
}

#[test]
fn a_worker_that_acts_itself_is_left_alive() {
    let (mut guardian, fence_at) = guarding();
    guardian.alive(fence_at, fence_at + ms(2));
    let step = guardian.step(fence_at + WORKER_HEAD_START);
    assert!(step.fence.is_some() && !step.kill_worker, "{step:?}");
    guardian.fenced(&Fenced::Gone, fence_at + ms(200));
    let steps = run(&mut guardian, fence_at + ms(200), fence_at + ms(5000));
    assert_eq!(steps, []);
}

#[test]
fn fencing_is_repeated_until_it_has_worked_and_the_worker_is_gone() {
    let (mut guardian, fence_at) = guarding();
    let now = fence_at + WORKER_HEAD_START;
    assert!(guardian.step(now).fence.is_some());
    guardian.fenced(&Fenced::Survives, now + ms(10));
    assert_eq!(guardian.step(now + ms(10)).fence, None);
    assert!(guardian.step(now + ms(10) + FENCE_PAUSE).fence.is_some());
    // Nothing is left, but the killed worker could still have started something.
    guardian.fenced(&Fenced::Gone, now + ms(120));
    let step = guardian.step(now + ms(120));
    assert!(step.fence.is_none() && step.start_worker.is_none());
    guardian.worker_ended(crash(), now + ms(130));
    assert!(guardian.step(now + ms(130) + FENCE_PAUSE).fence.is_some());
    guardian.fenced(&Fenced::Gone, now + ms(240));
    let step = guardian.step(now + ms(240));
    assert_eq!((step.fence, guardian.fences_at()), (None, None));
}

#[test]
fn a_worker_cannot_move_the_deadline_beyond_a_lease() {
    let (mut guardian, _) = guarding();
    guardian.told(until(3, at(90_000)), at(20_100));
    assert_eq!(guardian.fences_at(), Some(at(20_100) + terms().hold() + WORKER_HEAD_START));
    guardian.told(until(3, at(20_500)), at(20_100));
    assert_eq!(guardian.fences_at(), Some(at(20_500) + WORKER_HEAD_START), "but nearer");
}

#[test]
fn a_worker_cannot_speak_for_a_generation_that_is_over() {
    let (mut guardian, fence_at) = guarding();
    guardian.told(until(2, fence_at + ms(50)), at(20_100));
    assert_eq!(guardian.fences_at(), Some(fence_at + WORKER_HEAD_START));
    assert!(guardian.step(at(20_100)).notes[0].contains("not believed"));
    // Not even after the deadline was lifted.
    guardian.told(Guard::Off, at(20_200));
    guardian.told(until(2, fence_at + ms(50)), at(20_200));
    assert_eq!(guardian.fences_at(), None);
    guardian.told(until(4, fence_at + ms(50)), at(20_200));
    assert_eq!(guardian.fences_at(), Some(fence_at + ms(50) + WORKER_HEAD_START));
}

#[test]
fn a_crashed_worker_is_replaced_at_once_and_the_deadline_stands() {
    let (mut guardian, fence_at) = guarding();
    guardian.worker_ended(crash(), at(20_100));
    let step = guardian.step(at(20_100));
    assert_eq!((step.start_worker, step.fence, step.end), (Some(fence_at), None, None));
    assert!(guardian.ran_before());
    guardian.worker_started(at(20_100));
    // What it was told it may repeat, but not stretch.
    guardian.told(until(3, fence_at), at(20_300));
    assert_eq!(guardian.fences_at(), Some(fence_at + WORKER_HEAD_START));
    // It does not come up in time. It has decided nothing, so it may go on.
    let step = guardian.step(fence_at + WORKER_HEAD_START);
    assert!(step.fence.is_some() && !step.kill_worker);
}

#[test]
fn a_worker_that_dies_again_and_again_is_given_time_unless_there_is_none() {
    let pauses = |guard: Option<MonoTime>| {
        let (mut guardian, _) = guarding();
        let mut now = at(20_000);
        (0..9)
            .map(|_| {
                guardian.told(guard.map_or(Guard::Off, |at| until(3, at)), now);
                guardian.worker_ended(crash(), now);
                let start =
                    (0..10_000).map(ms).find(|wait| guardian.step(now + *wait).start_worker.is_some());
                let start = start.unwrap();
                now = now + start;
                guardian.worker_started(now);
                start.as_millis()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(pauses(None), [0, 0, 50, 100, 200, 400, 800, 1600, 3200]);
    assert!(pauses(Some(at(90_000))).iter().all(|pause| *pause <= 100));
}

#[test]
fn the_first_worker_adopts_what_runs_and_later_ones_only_what_was_guarded() {
    let mut guardian = new();
    let adoption = at(0) + terms().adoption();
    assert_eq!(guardian.step(at(0)).start_worker, Some(adoption));
    guardian.worker_started(at(0));
    // One that died before it said anything changes nothing.
    guardian.worker_ended(crash(), at(500));
    assert_eq!(guardian.step(at(500)).start_worker, Some(adoption));
    guardian.worker_started(at(500));
    guardian.told(until(1, adoption), at(600));
    assert_eq!(guardian.fences_at(), Some(adoption + WORKER_HEAD_START));
    guardian.worker_ended(crash(), at(700));
    assert_eq!(guardian.step(at(750)).start_worker, Some(adoption));
    guardian.worker_started(at(750));
    guardian.told(until(1, at(90_000)), at(800));
    assert_eq!(guardian.fences_at(), Some(adoption + WORKER_HEAD_START), "it stretches nothing");
    guardian.told(Guard::Off, at(900));
    guardian.worker_ended(crash(), at(10_000));
    assert_eq!(guardian.step(at(10_000)).start_worker, Some(at(10_000)), "nothing ran that could write");
    assert!(!guardian.ran_before());
}

#[test]
fn a_worker_that_hangs_is_replaced() {
    let (mut guardian, _) = guarding();
    guardian.told(Guard::Off, at(20_000));
    let steps = run(&mut guardian, at(20_000), at(60_000));
    assert_eq!(steps.len(), 1, "{steps:?}");
    assert!(steps[0].1.kill_worker && steps[0].1.fence.is_none());
    assert_eq!(steps[0].0, at(20_000) + terms().frozen_after());
    guardian.worker_ended(crash(), at(31_000));
    assert!(guardian.step(at(31_000)).start_worker.is_some());
}

#[test]
fn a_refusal_ends_the_guardian_once_nothing_is_left_to_guard() {
    let mut guardian = new();
    guardian.worker_started(at(0));
    guardian.worker_ended(Ended::Refused, at(100));
    assert_eq!(guardian.step(at(100)).end, Some(End::Refused));

    let (mut guardian, fence_at) = guarding();
    guardian.worker_ended(Ended::Refused, at(20_100));
    let step = guardian.step(at(20_100));
    assert_eq!((step.end, step.start_worker), (None, Some(fence_at)), "tried again while there is time");
    guardian.worker_started(at(20_100));
    guardian.worker_ended(Ended::Refused, fence_at);
    let now = fence_at + WORKER_HEAD_START;
    let step = guardian.step(now);
    assert!(step.fence.is_some() && step.end.is_none(), "{step:?}");
    guardian.fenced(&Fenced::Gone, now + ms(100));
    assert_eq!(guardian.step(now + ms(100)).end, Some(End::Refused));
}

#[test]
fn a_stop_in_order_leaves_postgresql_alone() {
    let (mut guardian, fence_at) = guarding();
    guardian.asked_to_stop(at(20_100));
    assert!(guardian.step(at(20_100)).stop_worker);
    assert!(!guardian.step(at(20_101)).stop_worker, "asked once");
    guardian.told(until(3, fence_at), at(20_110));
    guardian.worker_ended(Ended::InOrder, at(20_200));
    let step = guardian.step(at(20_200));
    assert_eq!((step.end, step.fence, step.start_worker), (Some(End::Stopped), None, None));

    // By `stop-cluster`, of which the guardian learns by the worker's end.
    let (mut guardian, _) = guarding();
    guardian.worker_ended(Ended::InOrder, at(20_200));
    assert_eq!(guardian.step(at(20_200)).end, Some(End::Stopped));

    // A worker that does not end is killed.
    let (mut guardian, _) = guarding();
    guardian.asked_to_stop(at(20_100));
    let steps = run(&mut guardian, at(20_100), at(60_000));
    assert_eq!(steps.len(), 1, "{steps:?}");
    assert!(steps[0].1.kill_worker && steps[0].0 == at(20_100) + STOP_PATIENCE);
    guardian.worker_ended(crash(), at(30_200));
    assert_eq!(guardian.step(at(30_200)).end, Some(End::Stopped));
}

#[test]
fn fencing_that_has_begun_is_finished_before_the_end() {
    let (mut guardian, fence_at) = guarding();
    let now = fence_at + WORKER_HEAD_START;
    assert!(guardian.step(now).fence.is_some());
    guardian.fenced(&Fenced::Survives, now);
    guardian.worker_ended(crash(), now);
    guardian.asked_to_stop(now);
    assert_eq!(guardian.step(now + ms(1)).end, None);
    assert!(guardian.step(now + FENCE_PAUSE).fence.is_some());
    guardian.fenced(&Fenced::Gone, now + FENCE_PAUSE);
    assert_eq!(guardian.step(now + FENCE_PAUSE).end, Some(End::Stopped));
}

#[test]
fn the_watchdog_goes_off_within_the_lease_unless_postgresql_is_gone() {
    let timeout = ms(1000);
    let mut guardian = Guardian::new(Rules { terms: terms(), watchdog: Some(timeout) }, at(0));
    assert!(guardian.step(at(0)).pet);
    guardian.worker_started(at(0));
    guardian.alive(at(990), at(1000));
    let fence_at = at(1000) + terms().hold();
    guardian.told(until(1, fence_at), at(1000));
    let last = |steps: &[(MonoTime, Step)]| steps.iter().rev().find(|(_, step)| step.pet).map(|(at, _)| *at);
    let lease_ends = fence_at + GUARDIAN_SLACK + KILL_BUDGET;
    let steps = run(&mut guardian, at(1000), fence_at);
    let petted = last(&steps).unwrap();
    assert!(petted > at(1000) && petted + timeout <= lease_ends, "{petted:?}");
    // Somebody survives: it goes off.
    let now = fence_at + WORKER_HEAD_START;
    assert!(guardian.step(now).fence.is_some());
    guardian.fenced(&Fenced::Survives, now + ms(50));
    assert!(!guardian.step(now + ms(60)).pet);
    guardian.worker_ended(crash(), now + ms(80));
    assert!(guardian.step(now + ms(190)).fence.is_some());
    // Just before it would have been its turn again.
    let _not_petted = guardian.step(now + ms(290));
    guardian.fenced(&Fenced::Gone, now + ms(300));
    assert!(guardian.step(now + ms(300)).pet, "the machine has been spared, and needs to know at once");
    guardian.worker_started(now + ms(300));
    assert!(run(&mut guardian, now + ms(300), now + ms(600)).iter().any(|(_, step)| step.pet));
}
