//! Prints where the emulator's library is: for `LD_PRELOAD`, by which a program that is not built
//! with it has it for its driver; of the mode that `INFLIGHT_SIMT` and the driver that
//! `INFLIGHT_SIMT_DRIVER` asks for.

fn main() {
    match simt::library_of(simt::Mode::asked(simt::Mode::Fast), simt::Driver::asked()) {
        Ok(path) => println!("{path}"),
        Err(why) => {
            eprintln!("{why}");
            std::process::exit(1);
        }
    }
}
