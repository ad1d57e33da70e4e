//! Snapshots of printed texts.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::process::Output;
use tests::golden;
use tests::program::rushes;

fn exported() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = golden::case("two-experts").checkpoint();
    let output =
        rushes(folder.path()).arg("export").arg(checkpoint).args(["--out", "bundle"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    folder
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

#[test]
fn the_text_of_inspect() {
    let folder = exported();
    let output = rushes(folder.path()).args(["inspect", "bundle"]).output().unwrap();
    insta::assert_snapshot!(text(&output.stdout), @r#"
    checkpoint (bundle format 2, made by rushes 0.1.0)
    text encoder  2 layers, width 32, 4 heads, vocabulary 720
    denoiser      2 layers, width 24, 2 heads of 12, feed-forward 40
    decoder       base 4, 16 latent channels, 4 frames and 8x8 pixels per latent position
    expert        high_noise from timestep 875
    expert        low_noise from timestep 0

    defaults
      size       832x480 (built in)
      frames     81 (built in)
      fps        16 (built in)
      steps      40 (built in)
      guidance   5,5 (built in)
      shift      5 (scheduler config)
      sampler    unipc (scheduler config)
      schedule   diffusers (built in)
      negative   "" (built in)

    the text encoder: 165.9 kB of f32 weights, digest 384fac1a6981
      graph   text_encoder/cpu-f32.384fac1a6981.onnx
      weights text_encoder/weights/model.safetensors (165.9 kB)

    the high_noise expert: 122.7 kB of f32 weights, digest 7d89f083ffcb
      graph   experts/high_noise/cpu-f32.7d89f083ffcb.onnx
      weights experts/high_noise/weights/diffusion_pytorch_model-00001-of-00003.safetensors (48.8 kB)
      weights experts/high_noise/weights/diffusion_pytorch_model-00002-of-00003.safetensors (50.6 kB)
      weights experts/high_noise/weights/diffusion_pytorch_model-00003-of-00003.safetensors (23.3 kB)

    the low_noise expert: 122.7 kB of f32 weights, digest d044705ec818
      graph   experts/low_noise/cpu-f32.d044705ec818.onnx
      weights experts/low_noise/weights/diffusion_pytorch_model-00001-of-00003.safetensors (48.8 kB)
      weights experts/low_noise/weights/diffusion_pytorch_model-00002-of-00003.safetensors (50.6 kB)
      weights experts/low_noise/weights/diffusion_pytorch_model-00003-of-00003.safetensors (23.3 kB)

    the decoder: 538.8 kB of f32 weights, digest 36f1dc68c8a3
      graph   decoder/first.cpu-f32.36f1dc68c8a3.onnx
      graph   decoder/next.cpu-f32.36f1dc68c8a3.onnx
      graph   decoder/trunk.first.cpu-f32.36f1dc68c8a3.onnx
      graph   decoder/upsampler.first.cpu-f32.36f1dc68c8a3.onnx
      graph   decoder/trunk.next.cpu-f32.36f1dc68c8a3.onnx
      graph   decoder/upsampler.next.cpu-f32.36f1dc68c8a3.onnx
      weights decoder/weights/diffusion_pytorch_model.safetensors (538.8 kB)
    "#);
}

#[test]
fn the_plan_of_a_clip() {
    let folder = exported();
    let arguments = [
        "generate", "a boat", "--bundle", "bundle", "--size", "32x16", "--frames", "3", "--steps", "4",
        "--seed", "7",
    ];
    let output = rushes(folder.path()).args(arguments).output().unwrap();
    // How long it takes depends on the machine.
    let (plan, time) =
        text(&output.stderr).trim_end().rsplit_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert!(time.contains(" per step on cpu, ") && time.ends_with(", as predicted"), "{time}");
    insta::assert_snapshot!(plan, @r"
    32x16, 3 frames at 16 fps (the model makes 5, the rest is trimmed); 4 steps of unipc (diffusers, shift 5): high_noise 2 steps at guidance 5, low_noise 2 steps at guidance 5; seed 7
    ");
}

#[test]
fn the_texts_of_errors() {
    let folder = exported();
    let fail = |arguments: &[&str]| -> Output {
        rushes(folder.path())
            .args(["generate", "a boat", "--bundle", "bundle"])
            .args(arguments)
            .output()
            .unwrap()
    };
    insta::assert_snapshot!(text(&fail(&["--size", "830x480"]).stderr), @r"
    error: --size cannot be 830x480
      why: width and height must be multiples of 16
      fix: use 816x480 or 832x480
    ");
    insta::assert_snapshot!(text(&fail(&["--memory-budget", "50MB"]).stderr), @r"
    error: 831.1 MB are needed on cpu and 50.0 MB may be used
      why: the largest parts are the activations of the decoder 824.1 MB, the weights of the decoder 7.1 MB
      fix: use a smaller --size or fewer --frames, or raise --memory-budget
    ");
    insta::assert_snapshot!(text(&fail(&["--fps", "fast"]).stderr), @r"
    error: --fps cannot be `fast`
      why: it is not a number of frames per second
      fix: write it like 24, 23.976 or 24000/1001
    ");
    insta::assert_snapshot!(text(&fail(&["--steps", "fast"]).stderr), @r"
    error: invalid value 'fast' for '--steps <N>': invalid digit found in string
      why: the command line cannot be parsed
      fix: see `rushes --help` or `rushes COMMAND --help`
    ");
}
