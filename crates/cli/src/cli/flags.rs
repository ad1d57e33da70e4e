//! The flags of settings.

use bundle::Field;

/// The flag of a setting, or the setting's name if no flag has it.
pub(super) fn flag(field: Field) -> &'static str {
    match field {
        Field::Resume => "--resume",
        Field::ResumeFrom => "--from",
        Field::JobFolder => "--job-dir",
        Field::StopAfter => "--stop-after",
        Field::Variation => "--variation",
        Field::Like => "--like",
        Field::Bundle => "--bundle",
        Field::Seeds => "--seeds",
        Field::StepsOf => "--steps-of",
        Field::Size => "--size",
        Field::Frames => "--frames",
        Field::Seconds => "--seconds",
        Field::FrameRate => "--fps",
        Field::Steps => "--steps",
        Field::Guidance => "--guidance",
        Field::Shift => "--shift",
        Field::Sampler => "--sampler",
        Field::Schedule => "--schedule",
        Field::Preset => "--preset",
        Field::Timesteps => "--timesteps",
        Field::Start => "--start",
        Field::GuidanceUntil => "--guidance-until",
        Field::StepCache => "--step-cache",
        Field::Seed => "--seed",
        Field::Noise => "--noise",
        Field::NoiseScale => "--noise-scale",
        Field::Precision => "--precision",
        Field::Kernels => "--kernels",
        Field::Provider => "--ep",
        Field::Place => "--place",
        Field::GuidanceDevices => "--guidance-devices",
        Field::CpuNodes => "--allow-cpu-nodes",
        Field::Residency => "--residency",
        Field::MemoryBudget => "--memory-budget",
        Field::Tile => "--tile",
        Field::OnnxRuntime => "--onnxruntime",
        Field::ProviderFolder => "--providers",
        Field::Preview => "--preview",
        Field::PreviewOutput => "--preview-out",
        Field::Output => "--output",
        Field::OutputTimeout => "--output-timeout",
        Field::WhipToken => "--whip-token",
        Field::Sign => "--sign",
        Field::Caption => "--caption",
        Field::Logo => "--logo",
        Field::Audio => "--audio",
        Field::Background => "--background",
        Field::KeyColour => "--key",
        Field::OutputFrameRate => "--output-fps",
        Field::Interpolation => "--output-fps-by",
        Field::Folder => "--out",
        Field::Target => "--target",
        Field::Components => "--components",
        Field::Attention => "--attention",
        Field::Weights => "--weights",
        Field::GraphsOnly => "--graphs-only",
        Field::Copy => "--copy",
        Field::TinyDecoder => "--tiny",
        Field::Verify => "--verify",
        Field::Scheme => "--scheme",
        Field::Ranges => "--ranges",
        Field::Sensitivity => "--sensitivity",
        Field::Prompts => "--prompts",
        Field::Judge => "--judge",
        Field::Shape => "--shape",
        Field::Tokens => "--tokens",
        Field::Latent => "--latent",
        Field::Arrivals => "--arrivals",
        Field::Costs => "--costs",
        Field::Order => "--order",
        Field::Store => "--store",
        Field::StoreBudget => "--store-budget",
        Field::KeepSteps => "--keep-steps",
        Field::FromStep => "--from-step",
        Field::Priority => "--priority",
        Field::Deadline => "--deadline",
        Field::Lora => "--lora",
        Field::LoraLenient => "--lora-lenient",
        // Without a flag: prompt and clip are positional, and the routing table is not set by arguments.
        other => other.name(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::Cli;
    use super::*;
    use bundle::Report;
    use clap::{Command, CommandFactory};
    use std::collections::BTreeSet;

    fn add_flags(command: &Command, flags: &mut BTreeSet<String>) {
        flags.extend(
            command.get_arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?))),
        );
        command.get_subcommands().for_each(|subcommand| add_flags(subcommand, flags));
    }

    #[test]
    fn every_setting_has_a_flag_of_its_own() {
        let mut known = BTreeSet::new();
        add_flags(&Cli::command(), &mut known);
        let without: Vec<Field> =
            Field::ALL.into_iter().filter(|field| !flag(*field).starts_with("--")).collect();
        assert_eq!(without, [Field::Prompt, Field::Clip, Field::Routing]);
        let used: BTreeSet<&str> = Field::ALL.map(flag).into();
        assert_eq!(used.len(), Field::ALL.len());
        for flag in Field::ALL.map(flag).into_iter().filter(|flag| flag.starts_with("--")) {
            assert!(known.contains(flag), "no command has {flag}");
        }
    }

    #[test]
    fn reports_are_printed_with_flags() {
        let shown = |report: Report| report.with_names(flag).to_string();
        let error = bundle::Error::value(Field::FrameRate, 0, "it is too low", "use 16, or another `size`");
        insta::assert_snapshot!(shown(bundle::Diagnose::report(&error)), @"--fps cannot be 0: it is too low (use 16, or another --size)");
        let error = prompt::Error::Empty;
        insta::assert_snapshot!(shown(bundle::Diagnose::report(&error)), @"the prompt is empty: cleaning leaves no text (describe the video in a sentence or two)");
        let report =
            Report::damaged("`size` is absent", "missing field `size`", "run `rushes inspect` with `verify`");
        insta::assert_snapshot!(shown(report), @"`size` is absent: missing field `size` (run `rushes inspect` with --verify)");
    }
}
