//! Prints where the emulator's library is: for `LD_PRELOAD`, by which a program that is not built
//! with it has it for its driver.

fn main() {
    match simt::library(simt::Mode::Fast) {
        Ok(path) => println!("{path}"),
        Err(why) => {
            eprintln!("{why}");
            std::process::exit(1);
        }
    }
}
