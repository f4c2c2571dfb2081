//! The wire vocabulary of tranship: messages, frames and limits. No I/O, no clock, no files.
#![forbid(unsafe_code)]
