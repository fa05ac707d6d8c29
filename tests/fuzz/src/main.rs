//! Prints the targets and their longest generated inputs, for `scripts/fuzz.sh`.

fn main() {
    for target in fuzz::TARGETS {
        println!("{} {}", target.name, target.len_max);
    }
}
