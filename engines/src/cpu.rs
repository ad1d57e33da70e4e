//! The processor and its instruction sets, from `/proc/cpuinfo`.

/// The processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// Model name.
    pub name: String,
    /// Family and model numbers, which identify the microarchitecture; x86 only.
    pub family: Option<String>,
    /// Hardware threads that this process may use.
    pub threads: usize,
    /// The instruction sets for inference, each with true if the processor has it.
    pub instruction_sets: Vec<(InstructionSet, bool)>,
}

/// An instruction set that kernels are selected by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionSet {
    /// 256-bit vectors.
    Avx2,
    /// 512-bit vectors.
    Avx512,
    /// 8-bit integer products on 512-bit vectors.
    Avx512Vnni,
    /// 16-bit brain float products on 512-bit vectors.
    Avx512Bf16,
    /// 8-bit integer products on tiles.
    AmxInt8,
    /// 16-bit brain float products on tiles.
    AmxBf16,
    /// 8-bit integer dot products of Arm.
    DotProduct,
    /// 8-bit integer matrix products of Arm.
    I8mm,
    /// 16-bit brain float products of Arm.
    Bf16,
}

bundle::named!(
    InstructionSet,
    "avx2" => Avx2, "avx512" => Avx512, "avx512_vnni" => Avx512Vnni, "avx512_bf16" => Avx512Bf16,
    "amx_int8" => AmxInt8, "amx_bf16" => AmxBf16, "dotprod" => DotProduct, "i8mm" => I8mm, "bf16" => Bf16,
);

impl InstructionSet {
    /// Instruction sets of x86-64.
    pub const X86: [Self; 6] =
        [Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16, Self::AmxInt8, Self::AmxBf16];
    /// Instruction sets of Arm.
    pub const ARM: [Self; 3] = [Self::DotProduct, Self::I8mm, Self::Bf16];

    /// Its name in `/proc/cpuinfo`.
    fn kernel_name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512f",
            Self::DotProduct => "asimddp",
            other => other.name(),
        }
    }
}

impl Cpu {
    /// The processor of this machine.
    pub fn detect() -> Self {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        Self::from_cpuinfo(&text, threads)
    }

    /// Its name with the family and model numbers, where they are known.
    pub fn full_name(&self) -> String {
        match &self.family {
            Some(family) => format!("{}, {family}", self.name),
            None => self.name.clone(),
        }
    }

    fn from_cpuinfo(text: &str, threads: usize) -> Self {
        let value = |name: &str| {
            let (_, value) =
                text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)?;
            Some(value.trim())
        };
        let (sets, words): (&[InstructionSet], _) = match (value("flags"), value("Features")) {
            (Some(flags), _) => (&InstructionSet::X86, flags),
            (None, Some(features)) => (&InstructionSet::ARM, features),
            (None, None) => (&[], ""),
        };
        let has = |set: InstructionSet| words.split_whitespace().any(|word| word == set.kernel_name());
        Self {
            name: value("model name").unwrap_or("unknown").to_owned(),
            family: value("cpu family")
                .zip(value("model"))
                .map(|(family, model)| format!("family {family} model {model}")),
            threads,
            instruction_sets: sets.iter().map(|&set| (set, has(set))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(text: &str) -> String {
        let cpu = Cpu::from_cpuinfo(text, 2);
        let words: Vec<String> = cpu
            .instruction_sets
            .iter()
            .map(|(set, has)| format!("{}{set}", if *has { "+" } else { "-" }))
            .collect();
        format!("{} {}", cpu.name, words.join(" "))
    }

    #[test]
    fn family_and_model_are_optional() {
        let text = "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9B14\n";
        let cpu = Cpu::from_cpuinfo(text, 2);
        assert_eq!(cpu.family.as_deref(), Some("family 25 model 17"));
        assert_eq!(cpu.full_name(), "AMD EPYC 9B14, family 25 model 17");
        let cpu = Cpu::from_cpuinfo("Features : fp\n", 2);
        assert_eq!((cpu.full_name(), cpu.family), ("unknown".into(), None));
    }

    #[test]
    fn flags_are_matched_as_whole_words() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t\t: fpu avx avx2 avx512f avx512_vnni\n\
                    \nprocessor\t: 1\nmodel name\t: other\nflags\t\t: amx_int8\n";
        insta::assert_snapshot!(sets(text), @"AMD EPYC 9B14 +avx2 +avx512 +avx512_vnni -avx512_bf16 -amx_int8 -amx_bf16");
    }

    #[test]
    fn arm_features_are_read() {
        insta::assert_snapshot!(sets("processor : 0\nFeatures : fp asimd asimddp i8mm\n"), @"unknown +dotprod +i8mm -bf16");
        assert_eq!(sets(""), "unknown ");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn cpuinfo_agrees_with_cpuid() {
        let cpu = Cpu::detect();
        let has = |wanted| cpu.instruction_sets.iter().any(|&(set, has)| set == wanted && has);
        assert_eq!(has(InstructionSet::Avx2), std::is_x86_feature_detected!("avx2"));
        assert_eq!(has(InstructionSet::Avx512), std::is_x86_feature_detected!("avx512f"));
        assert_eq!(has(InstructionSet::Avx512Vnni), std::is_x86_feature_detected!("avx512vnni"));
    }
}
