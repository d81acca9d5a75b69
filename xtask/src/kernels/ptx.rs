//! PTX as it is committed: without what changes from build to build, and held to exact arithmetic.

use anyhow::{Result, bail};

/// Without comments (compiler builds, dates and demoted names stand in them), blank lines and trailing blanks.
pub(super) fn clean(ptx: &str) -> String {
    let lines = ptx.lines().map(|line| line.split("//").next().unwrap_or_default().trim_end());
    lines.filter(|line| !line.is_empty()).flat_map(|line| [line, "\n"]).collect()
}

/// Fails where an instruction could give other bits than IEEE 754 says: flush to zero, approximation, contraction. A plain
/// `mul.f32` counts, because the driver's compiler may contract it with an addition; `mul.rn.f32` it must leave alone.
pub(super) fn check_exact(ptx: &str) -> Result<()> {
    for line in ptx.lines() {
        let mut words = line.split_whitespace();
        let instruction = words.find(|word| !word.starts_with('@')).unwrap_or_default();
        let parts: Vec<&str> = instruction.trim_end_matches(';').split('.').collect();
        let float = parts.iter().any(|part| ["f16", "bf16", "f16x2", "bf16x2", "f32", "f64"].contains(part));
        let arithmetic = ["add", "sub", "mul", "div", "rcp", "sqrt"].contains(&parts[0]);
        let why = if parts.contains(&"ftz") {
            "flushes subnormal numbers to zero"
        } else if parts.contains(&"approx") || parts.contains(&"full") {
            "is an approximation"
        } else if float && ["fma", "mad"].contains(&parts[0]) {
            "rounds once where the reference rounds twice"
        } else if float && arithmetic && !parts.contains(&"rn") {
            "may be contracted: it lacks `.rn`"
        } else {
            continue;
        };
        bail!("`{}` {why}, and these kernels are exact to the bit", line.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blanks_go() {
        let ptx = "// Build ID: CL-1\n\n.version 8.4\n\tret;  // done\n\t\n}\n";
        assert_eq!(clean(ptx), ".version 8.4\n\tret;\n}\n");
    }

    #[test]
    fn exact_arithmetic_passes() {
        let ptx = "\tmul.rn.f32 %f1, %f2, %f3;\n\tdiv.rn.f32 %f1, %f2, %f3;\n\tmad.lo.s32 %r1, %r2, %r3, %r4;\n\
                   \tadd.s64 %rd1, %rd2, 4;\n\tcvt.rn.f16x2.f32 %r1, %f1, %f2;\n\tmin.u64 %rd1, %rd2, 128;\n\
                   @%p1 bra $L__BB0_54;\n\tld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd7];\n";
        check_exact(ptx).unwrap();
    }

    #[test]
    fn each_inexact_instruction_is_found() {
        for line in [
            "mul.f32 %f1, %f2, %f3;",
            "@%p1 add.f32 %f1, %f2, %f3;",
            "fma.rn.f32 %f1, %f2, %f3, %f4;",
            "div.full.f32 %f1, %f2, %f3;",
            "div.approx.f32 %f1, %f2, %f3;",
            "mul.rn.ftz.f32 %f1, %f2, %f3;",
            "cvt.rn.f16.f32.ftz %h1, %f1;",
            "sub.bf16x2 %r1, %r2, %r3;",
        ] {
            assert!(check_exact(line).is_err(), "{line}");
        }
    }
}
