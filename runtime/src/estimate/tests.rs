//! Times of Wan2.2-T2V-A14B on known GPUs and on a small processor.

use super::*;
use crate::memory_plan::tests::{a14b, clip_of, request};
use proptest::prelude::*;

fn estimate(default: &str, place: &str, [width, height]: [usize; 2], peaks: Option<Peaks>) -> ClipEstimate {
    let manifest = a14b();
    let plan = clip_of(&manifest, width, height);
    let request = request(&manifest, default, place, "500GB");
    let memory = MemoryPlan::new(&manifest, &plan, &request).unwrap();
    ClipEstimate::new(&manifest, &plan, (&request, &memory), &|_| peaks)
}

fn gpu(name: &str) -> Option<Peaks> {
    known_gpu(name).map(|gpu| Peaks::Gpu(gpu.peaks))
}

#[test]
fn a_guided_step_of_a14b_on_an_h200_takes_about_the_published_five_seconds() {
    let found = estimate("cuda", "", [832, 480], gpu("h200"));
    let names: Vec<String> = found.phases.iter().map(|phase| phase.component.to_string()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let units: Vec<usize> = found.phases.iter().map(|phase| phase.units).collect();
    assert_eq!((units[0], units[1] + units[2], units[3]), (1, found.experts().map(|e| e.units).sum(), 21));
    let (_, step) = found.longest_step().unwrap();
    // sglang: 5.142 s.
    assert!((step.least..step.most).contains(&5.142), "{step:?}");
    let [total, preview, frame] =
        [found.total(), found.until_first_step(), found.until_first_frame()].map(Option::unwrap);
    assert!(preview.most < frame.least && frame.most < total.most && frame.least < total.least);
    // Text, opening and one step.
    assert!(preview.least > step.least && preview.least < step.least + 20.0, "{preview:?}");
}

#[test]
fn a_pair_makes_a_guided_step_in_half_of_the_time() {
    let one = estimate("cuda", "", [832, 480], gpu("h200"));
    let two = estimate("cuda", "high=cuda:0+cuda:1", [832, 480], gpu("h200"));
    let [one, two] = [&one, &two].map(|found| found.phases[1].clone());
    assert_eq!(two.devices.len(), 2);
    let [one, two] = [one.unit, two.unit].map(Option::unwrap);
    assert!((one.least / two.least - 2.0).abs() < 1e-9 && (one.most / two.most - 2.0).abs() < 1e-9);
}

#[test]
fn a14b_on_two_cores_takes_more_than_half_an_hour_per_step() {
    let cores = CpuPeaks { int8: 6623e9, bf16: Some(2913e9), f32: 467e9, has_tiles: true };
    let found = estimate("cpu", "", [832, 480], Some(Peaks::Cpu(cores)));
    let (_, step) = found.longest_step().unwrap();
    // Two passes of 1.68 PFLOP at 0.26 to 0.41 TFLOP/s.
    assert!(step.least > 3600.0 && step.most < 5.0 * 3600.0, "{step:?}");
    assert!(step.to_string().ends_with("hours"), "{step}");
}

#[test]
fn without_peaks_only_the_opening_is_known() {
    let found = estimate("cuda", "", [832, 480], None);
    assert_eq!((found.total(), found.until_first_step(), found.longest_step()), (None, None, None));
    // 28.6 GB at 2 to 6 GB/s.
    let opening = found.phases[1].opening;
    assert!((4.0..5.0).contains(&opening.least) && (14.0..15.0).contains(&opening.most), "{opening:?}");
    // The speed of the text encoder alone is known.
    let mixed = estimate("cuda", "text_encoder=cpu", [832, 480], gpu("h200"));
    assert_eq!(mixed.total(), None);
    assert!(mixed.longest_step().is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn larger_clips_and_slower_devices_take_longer(
        sizes in prop::array::uniform2((2_usize..40, 2_usize..24)),
        factor in 1.0_f64..8.0,
    ) {
        let pixels = |(width, height): (usize, usize)| [width * 32, height * 32];
        let [(w, h), (dw, dh)] = sizes;
        let slow = known_gpu("l4").unwrap().peaks;
        let fast = GpuPeaks { bf16: slow.bf16 * factor, ..slow };
        let small = estimate("cuda", "", pixels((w, h)), Some(Peaks::Gpu(slow)));
        let large = estimate("cuda", "", pixels((w + dw, h + dh)), Some(Peaks::Gpu(slow)));
        let faster = estimate("cuda", "", pixels((w, h)), Some(Peaks::Gpu(fast)));
        let total = |found: &ClipEstimate| found.total().unwrap();
        prop_assert!(total(&small).most < total(&large).most);
        prop_assert!(total(&faster).most <= total(&small).most);
        for phase in small.phases {
            let time = phase.time().unwrap();
            prop_assert!(0.0 <= time.least && time.least <= time.most, "{:?}", time);
        }
    }
}
