//! Prints the targets and the longest input that is made for each, for `scripts/fuzz.sh`.

fn main() {
    for target in fuzz::TARGETS {
        println!("{} {}", target.name, target.len_max);
    }
}
