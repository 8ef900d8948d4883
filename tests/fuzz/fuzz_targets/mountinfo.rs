#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| attachd::testing::parsers::mountinfo(data));
