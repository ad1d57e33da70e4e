//! Every cross-crate test in one binary: each binary of its own would link ONNX Runtime and GStreamer again.
//!
//! A test whose measurement needs a process without other tests runs itself again in one (`tests::own_process`).

mod bundle_json;
mod calibration_inputs;
mod changing_files;
mod checkpoint_faults;
mod checkpoint_settings;
mod checkpoint_spellings;
mod command_line;
mod cpu_record;
mod cuda_target;
mod damaged_bundles;
mod dashes;
mod export_places;
mod format_1;
mod golden;
mod interruption;
mod kernel_decoder;
mod kernels;
mod live;
mod mini;
mod mini_cache;
mod module_cycles;
mod output_places;
mod outputs;
mod outputs_at_once;
mod paths;
mod post_process_files;
mod previews;
mod quality;
mod quantization;
mod quantize_refusals;
mod rates;
mod residency;
mod signals;
mod standard_output;
mod texts;
mod thread_counts;
mod tidy;
mod timestep_rows;
mod two_runs;
mod vectors;
