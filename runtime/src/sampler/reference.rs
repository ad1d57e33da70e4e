//! Trajectories and timesteps of the reference implementations.
//!
//! The velocity field is `v = x/2 + (t/1000)·[1, -2, 0.25]`, the start `[1, -0.5, 0.25]`. The vectors of diffusers are
//! from version 0.42.1; those of the official code are computed from its formulas in NumPy.

use super::{NoiseStream, Sampler, Schedule};
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::units::{Seed, Shift, Timestep};
use ndarray::{Array4, arr1};
use std::sync::Arc;

use ScheduleKind::{Diffusers, Official};
use SolverKind::{DpmPp, Euler, UniPc};

/// Differences from the order of f32 operations.
const TOLERANCE: f32 = 1e-6;

/// The latents after each step.
fn trajectory(solver: SolverKind, kind: ScheduleKind, steps: usize, shift: f64) -> Vec<[f32; 3]> {
    let channels = |values: [f32; 3]| arr1(&values).into_shape_with_order((3, 1, 1, 1)).unwrap();
    let mut sampler = Sampler::new(Schedule::new(solver, kind, steps, Shift(shift)), solver);
    let mut latent: Arc<Array4<f32>> = Arc::new(channels([1.0, -0.5, 0.25]));
    let direction = channels([1.0, -2.0, 0.25]);
    (0..steps)
        .map(|step| {
            let Timestep(timestep) = sampler.schedule().timesteps()[step];
            let velocity = &*latent * 0.5 + &direction * (timestep / 1000.0);
            latent = sampler.step(&latent, &velocity, &mut NoiseStream::new(Seed(0))).unwrap();
            assert_eq!(sampler.step_index(), step + 1);
            [latent[[0, 0, 0, 0]], latent[[1, 0, 0, 0]], latent[[2, 0, 0, 0]]]
        })
        .collect()
}

#[track_caller]
fn assert_close(found: &[[f32; 3]], expected: &[[f32; 3]]) {
    assert_eq!(found.len(), expected.len());
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= TOLERANCE, "step {step}: {found:?} is not {expected:?}");
        }
    }
}

/// The last latents of several runs `(steps, shift, latent)` on diffusers' grid.
#[track_caller]
fn assert_ends(solver: SolverKind, runs: &[(usize, f64, [f32; 3])]) {
    for (steps, shift, expected) in runs {
        let found = trajectory(solver, Diffusers, *steps, *shift);
        assert_close(&found[steps - 1..], &[*expected]);
    }
}

#[test]
fn official_unipc_matches_its_reference() {
    assert_close(
        &trajectory(UniPc, Official, 6, 12.0),
        &[
            [0.9754061, -0.4631173, 0.2438515],
            [0.9409411, -0.4116998, 0.2352353],
            [0.8891581, -0.3350757, 0.2222895],
            [0.8016737, -0.207_142, 0.2004184],
            [0.6240245, 0.0452035, 0.1560061],
            [-0.0936129, 1.0241976, -0.0234032],
        ],
    );
}

#[test]
fn diffusers_unipc_matches_its_reference() {
    assert_close(
        &trajectory(UniPc, Diffusers, 6, 12.0),
        &[
            [0.9754567, -0.4631933, 0.2438642],
            [0.9410477, -0.4118518, 0.2352619],
            [0.8893856, -0.3353832, 0.2223464],
            [0.8021892, -0.2078422, 0.2005473],
            [0.6254202, 0.0433427, 0.156_355],
            [-0.0956413, 1.0278918, -0.0239103],
        ],
    );
    assert_close(
        &trajectory(UniPc, Diffusers, 4, 5.0),
        &[
            [0.9064311, -0.3596778, 0.2266078],
            [0.7652844, -0.1521966, 0.1913211],
            [0.5380747, 0.1645063, 0.1345187],
            [-0.0215356, 0.8954412, -0.0053839],
        ],
    );
    assert_ends(
        UniPc,
        &[
            (1, 3.0, [-0.498_998_52, 1.747_997_8, -0.124_749_63]),
            (2, 5.0, [-0.256_661_24, 1.315_337, -0.064_165_31]),
            (14, 3.0, [0.233_495_68, 0.440_075_73, 0.058_373_92]),
            (20, 5.5, [0.222_708_67, 0.459_330_77, 0.055_677_168]),
            (50, 12.0, [0.227_747_95, 0.450_335_32, 0.056_936_987]),
        ],
    );
}

#[test]
fn official_dpmpp_matches_its_reference() {
    assert_close(
        &trajectory(DpmPp, Official, 6, 12.0),
        &[
            [0.9754099, -0.4631148, 0.2438525],
            [0.9406915, -0.4112379, 0.2351729],
            [0.8884423, -0.3337583, 0.2221106],
            [0.8003971, -0.2047935, 0.2000993],
            [0.6214775, 0.0498740, 0.1553694],
            [-0.0955146, 1.0275655, -0.0238786],
        ],
    );
}

#[test]
fn diffusers_dpmpp_matches_its_reference() {
    assert_close(
        &trajectory(DpmPp, Diffusers, 6, 12.0),
        &[
            [0.975_406_05, -0.463_117_3, 0.243_851_51],
            [0.940_718_23, -0.411_302_54, 0.235_179_56],
            [0.888_483_3, -0.333_870_1, 0.222_120_82],
            [0.800_448_9, -0.204_955_2, 0.200_112_22],
            [0.621_603_6, 0.049_525_97, 0.155_400_9],
            [-0.095_179_68, 1.026_995, -0.023_794_92],
        ],
    );
    assert_ends(
        DpmPp,
        &[
            (1, 3.0, [-0.498_500_1, 1.747_250_3, -0.124_625_03]),
            (2, 5.0, [-0.256_301_7, 1.314_843_8, -0.064_075_425]),
            (4, 5.0, [-0.026_763_38, 0.904_884, -0.006_690_845]),
            (14, 3.0, [0.233_838_65, 0.439_597_85, 0.058_459_662]),
            (20, 5.5, [0.224_021_8, 0.457_096_34, 0.056_005_45]),
            (50, 12.0, [0.230_866_79, 0.444_838_82, 0.057_716_698]),
        ],
    );
}

#[test]
fn distilled_euler_matches_its_reference() {
    assert_close(
        &trajectory(Euler, Official, 4, 5.0),
        &[
            [0.90625, -0.359375, 0.2265625],
            [0.7613932, -0.145_345, 0.1903483],
            [0.5084703, 0.2170173, 0.1271176],
            [-0.0410517, 0.9304494, -0.0102629],
        ],
    );
}

#[test]
fn diffusers_euler_matches_its_reference() {
    assert_close(
        &trajectory(Euler, Diffusers, 4, 5.0),
        &[
            [0.864_560_7, -0.296_841_03, 0.216_140_18],
            [0.606_376_2, 0.081_750_035, 0.151_594_04],
            [-0.100_735_61, 1.047_491_1, -0.025_183_901],
            [-0.100_101_97, 1.035_896_4, -0.025_025_493],
        ],
    );
    assert_ends(
        Euler,
        &[
            (1, 3.0, [-0.5, 1.75, -0.125]),
            (2, 5.0, [-0.458_318_47, 1.675_568_7, -0.114_579_62]),
            (6, 12.0, [-0.038_723_346, 0.926_291_65, -0.009_680_836]),
            (14, 3.0, [0.185_820_31, 0.525_320_9, 0.046_455_078]),
            (20, 5.5, [0.185_487_99, 0.525_914_3, 0.046_371_996]),
            (50, 12.0, [0.203_825_36, 0.493_168_92, 0.050_956_34]),
        ],
    );
}

#[track_caller]
fn assert_timesteps(solver: SolverKind, kind: ScheduleKind, shift: f64, expected: &[f32]) {
    let schedule = Schedule::new(solver, kind, expected.len(), Shift(shift));
    let found: Vec<f32> = schedule.timesteps().iter().map(|timestep| timestep.0).collect();
    assert_eq!(found, expected);
}

#[track_caller]
fn assert_sigmas(solver: SolverKind, kind: ScheduleKind, shift: f64, expected: &[f32]) {
    let schedule = Schedule::new(solver, kind, expected.len() - 1, Shift(shift));
    let found: Vec<f32> = schedule.sigmas().iter().map(|sigma| sigma.0).collect();
    assert_eq!(found, expected);
}

#[test]
fn official_unipc_has_the_reference_timesteps() {
    #[rustfmt::skip]
    assert_timesteps(UniPc, Official, 12.0, &[
        999., 997., 995., 993., 990., 988., 985., 982., 979., 976., 972., 969., 965., 961., 956., 952., 947., 941.,
        936., 929., 922., 915., 907., 898., 888., 877., 865., 852., 837., 819., 799., 776., 749., 717., 678., 631.,
        571., 492., 386., 235.,
    ]);
    #[rustfmt::skip]
    assert_timesteps(UniPc, Official, 5.0, &[
        999., 994., 989., 983., 978., 972., 965., 959., 952., 944., 937., 929., 920., 911., 902., 892., 882., 870.,
        859., 846., 833., 818., 803., 786., 768., 749., 728., 706., 681., 654., 624., 591., 555., 514., 468., 416.,
        356., 288., 208., 113.,
    ]);
    #[rustfmt::skip]
    assert_timesteps(UniPc, Official, 5.0, &[
        999., 995., 991., 987., 982., 978., 973., 968., 963., 957., 952., 946., 940., 934., 927., 920., 913., 906.,
        898., 890., 882., 873., 863., 854., 843., 833., 821., 809., 796., 783., 768., 753., 737., 720., 701., 681.,
        660., 636., 611., 584., 555., 522., 487., 448., 405., 356., 302., 241., 172., 92.,
    ]);
}

#[test]
fn official_unipc_has_the_reference_sigmas() {
    let schedule = Schedule::new(UniPc, Official, 40, Shift(12.0));
    let found = [0, 1, 25, 26, 39, 40].map(|i| schedule.sigmas()[i].0);
    assert_eq!(found, [0.999_916_6, 0.997_782_65, 0.877_877_3, 0.865_800_7, 0.235_109_54, 0.0]);
    assert_sigmas(
        UniPc,
        Official,
        12.0,
        &[0.999_916_6, 0.983_509_7, 0.959_884_7, 0.922_934_8, 0.856_959_04, 0.705_633_04, 0.0],
    );
}

#[test]
fn official_unipc_has_the_reference_number_of_high_noise_steps() {
    for (steps, high) in [(40, 26), (20, 13), (10, 7), (8, 6), (6, 4), (4, 3)] {
        let schedule = Schedule::new(UniPc, Official, steps, Shift(12.0));
        let found = schedule.timesteps().iter().filter(|timestep| timestep.0 >= 875.0).count();
        assert_eq!(found, high, "of {steps} steps");
    }
    let default_shift = Schedule::new(UniPc, Diffusers, 40, Shift(3.0));
    assert_eq!(default_shift.timesteps().iter().filter(|timestep| timestep.0 >= 875.0).count(), 13);
}

#[test]
fn diffusers_unipc_has_the_reference_timesteps() {
    #[rustfmt::skip]
    assert_timesteps(UniPc, Diffusers, 12.0, &[
        999., 997., 995., 993., 990., 988., 985., 982., 979., 976., 973., 969., 965., 961., 957., 952., 947., 942.,
        936., 930., 923., 915., 907., 898., 889., 878., 866., 852., 837., 820., 800., 777., 750., 719., 680., 633.,
        573., 496., 391., 242.,
    ]);
    let schedule = Schedule::new(UniPc, Diffusers, 40, Shift(12.0));
    let found = [0, 1, 39, 40].map(|i| schedule.sigmas()[i].0);
    assert_eq!(found, [0.999_999, 0.997_869_97, 0.242_431_31, 0.0]);
    assert_sigmas(UniPc, Diffusers, 3.0, &[0.999_999, 0.0]);
    assert_timesteps(UniPc, Diffusers, 5.0, &[999., 937., 833., 625.]);
}

#[test]
fn dpmpp_starts_at_pure_noise_only_in_the_official_code() {
    assert_timesteps(DpmPp, Official, 12.0, &[1000., 983., 960., 923., 857., 705.]);
    assert_sigmas(
        DpmPp,
        Official,
        12.0,
        &[1.0, 0.983_606_6, 0.96, 0.923_076_9, 0.857_142_87, 0.705_882_4, 0.0],
    );
    assert_sigmas(DpmPp, Diffusers, 3.0, &[0.999_666_45, 0.0]);
    assert_sigmas(DpmPp, Diffusers, 5.0, &[0.999_799_85, 0.937_265_46, 0.833_055_4, 0.624_687_3, 0.0]);
    #[rustfmt::skip]
    assert_timesteps(DpmPp, Diffusers, 5.5, &[
        999., 990., 980., 968., 956., 942., 927., 910., 891., 870., 845., 817., 785., 747., 701., 646., 578., 492.,
        379., 224.,
    ]);
}

#[test]
fn euler_has_fractional_timesteps() {
    assert_timesteps(Euler, Official, 5.0, &[1000., 937.5, 833.333_3, 625.]);
    assert_timesteps(Euler, Diffusers, 5.0, &[1000., 909.707_15, 717.317_44, 24.414_066]);
    assert_sigmas(Euler, Diffusers, 3.0, &[1.0, 0.0]);
    assert_sigmas(Euler, Diffusers, 5.0, &[1.0, 0.024_414_066, 0.0]);
    #[rustfmt::skip]
    assert_timesteps(Euler, Diffusers, 5.5, &[
        1000., 990.057_25, 979.183_04, 967.240_1, 954.062_74, 939.449_3, 923.151_1, 904.859_44, 884.184_45,
        860.627_87, 833.542_3, 802.070_44, 765.052_9, 720.882_26, 667.263_37, 600.801_9, 516.255_7, 405.081_15,
        252.346_54, 29.390_335,
    ]);
}
