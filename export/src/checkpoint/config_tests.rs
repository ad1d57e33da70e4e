//! Tests of config files.

use super::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn path() -> &'static Path {
    Path::new("config.json")
}

fn text(extra: Value) -> Result<TextEncoderSpec, Error> {
    let mut config =
        json!({ "vocab_size": 384, "d_model": 24, "num_heads": 3, "d_kv": 8, "d_ff": 32, "num_layers": 3 });
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    from::<TextEncoderConfig>(config).spec(path())
}

fn denoiser(config: Value) -> Result<DenoiserSpec, Error> {
    from::<DenoiserConfig>(config).spec(path())
}

fn vae(config: Value) -> Result<VaeSpec, Error> {
    from::<VaeConfig>(config).spec(path())
}

#[test]
fn absent_keys_have_the_defaults_of_diffusers() {
    let spec = denoiser(json!({})).unwrap();
    assert_eq!((spec.width(), spec.layers, spec.feed_forward), (5120, 40, 13824));
    assert_eq!((spec.in_channels, spec.out_channels, spec.text_width), (16, 16, 4096));
    let spec = vae(json!({})).unwrap();
    assert_eq!((spec.base, spec.latent_channels, spec.residual_blocks), (96, 16, 2));
    let spec = text(json!({})).unwrap();
    assert_eq!((spec.buckets, spec.max_distance, spec.epsilon), (32, 128, 1e-6));
}

#[test]
fn the_official_keys_of_the_denoiser_are_read() {
    let spec = denoiser(json!({
        "_class_name": "WanModel", "model_type": "t2v", "dim": 1536, "num_heads": 12, "in_dim": 16,
        "out_dim": 16, "ffn_dim": 8960, "num_layers": 30, "text_len": 512,
    }))
    .unwrap();
    assert_eq!((spec.heads, spec.head_width, spec.layers), (12, 128, 30));
    assert!(denoiser(json!({ "dim": 100, "num_heads": 12 })).is_err());
}

#[test]
fn two_names_of_a_setting_must_agree() {
    let spec = denoiser(json!({
        "in_dim": 16, "in_channels": 16, "out_dim": 16, "out_channels": 16, "num_heads": 12,
        "num_attention_heads": 12, "dim": 1536, "attention_head_dim": 128, "qk_norm": true, "text_len": 512,
        "window_size": [-1, -1],
    }))
    .unwrap();
    assert_eq!((spec.heads, spec.head_width, spec.in_channels, spec.out_channels), (12, 128, 16, 16));
    let both = json!({ "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3 });
    assert_eq!(text(both).unwrap().width, 24);
    let both =
        json!({ "temporal_downsample": [false, true, true], "temperal_downsample": [false, true, true] });
    assert_eq!(vae(both).unwrap().temporal_downsample, [false, true, true]);
    for (wrong, keys) in [
        (
            denoiser(json!({ "in_dim": 36, "in_channels": 16 })).err(),
            ["in_dim, another name for it, is 36", "in_channels is 16"],
        ),
        (denoiser(json!({ "out_dim": 4, "out_channels": 16 })).err(), ["out_dim", "out_channels"]),
        (
            denoiser(json!({ "num_heads": 4, "num_attention_heads": 5 })).err(),
            ["num_heads", "num_attention_heads"],
        ),
        (
            denoiser(json!({ "dim": 1536, "attention_head_dim": 128 })).err(),
            ["dim is 1536", "attention_head_dim"],
        ),
        (text(json!({ "hidden_size": 25 })).err(), ["hidden_size", "d_model"]),
        (text(json!({ "num_hidden_layers": 4 })).err(), ["num_hidden_layers", "num_layers"]),
        (
            vae(json!({ "temporal_downsample": [true], "temperal_downsample": [false] })).err(),
            ["temporal_downsample", "temperal_downsample"],
        ),
    ] {
        let error = wrong.unwrap().to_string();
        assert!(keys.iter().all(|key| error.contains(key)), "{error}");
    }
    assert!(from_text_without("d_model").to_string().contains("no d_model"));
}

fn from_text_without(key: &str) -> Error {
    let mut config =
        json!({ "vocab_size": 384, "d_model": 24, "num_heads": 3, "d_kv": 8, "d_ff": 32, "num_layers": 3 });
    config.as_object_mut().unwrap().remove(key);
    from::<TextEncoderConfig>(config).spec(path()).unwrap_err()
}

#[test]
fn unsupported_settings_are_refused_by_name() {
    for (config, setting) in [
        (json!({ "qk_norm": null }), "qk_norm = null"),
        (json!({ "qk_norm": "layer_norm" }), "qk_norm = layer_norm"),
        (json!({ "qk_norm": false }), "qk_norm = false"),
        (json!({ "text_len": 256 }), "text_len = 256"),
        (json!({ "window_size": [7, 7] }), "window_size = [7, 7]"),
        (json!({ "cross_attn_norm": false }), "cross_attn_norm = false"),
        (json!({ "image_dim": 1280 }), "image_dim = 1280"),
        (json!({ "added_kv_proj_dim": 64 }), "added_kv_proj_dim = 64"),
        (json!({ "patch_size": [2, 2, 2] }), "patch_size = [2, 2, 2]"),
        (json!({ "attention_head_dim": 7 }), "attention_head_dim = 7"),
        (json!({ "freq_dim": 255 }), "freq_dim = 255"),
    ] {
        let error = denoiser(config).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { setting: found, .. } if found == setting), "{error}");
    }
    for (config, setting) in [
        (json!({ "is_residual": true }), "is_residual = true"),
        (json!({ "patch_size": 2 }), "patch_size = 2"),
        (json!({ "attn_scales": [0.5] }), "attn_scales = [0.5]"),
        (json!({ "out_channels": 12 }), "out_channels = 12"),
    ] {
        let error = vae(config).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { setting: found, .. } if found == setting), "{error}");
    }
    assert!(matches!(text(json!({ "model_type": "t5" })), Err(Error::Unsupported { .. })));
    assert!(matches!(text(json!({ "feed_forward_proj": "relu" })), Err(Error::Unsupported { .. })));
}

#[test]
fn values_out_of_range_are_refused() {
    for config in [
        json!({ "num_layers": 0 }),
        json!({ "num_layers": 1_000_000_000_000_u64 }),
        json!({ "num_attention_heads": 0 }),
        json!({ "ffn_dim": 1_u64 << 40 }),
        json!({ "eps": -1.0 }),
    ] {
        assert!(matches!(denoiser(config.clone()), Err(Error::Config { .. })), "{config}");
    }
    for config in [
        json!({ "dim_mult": [] }),
        json!({ "dim_mult": [1, 2] }),
        json!({ "dim_mult": [1, 2, 0, 4] }),
        json!({ "z_dim": 8 }),
        json!({ "z_dim": 1, "latents_mean": [0.0], "latents_std": [0.0] }),
        json!({ "scale_factor_spatial": 16 }),
        json!({ "temperal_downsample": vec![true; 70], "dim_mult": vec![1; 71] }),
    ] {
        assert!(matches!(vae(config.clone()), Err(Error::Config { .. })), "{config}");
    }
    assert!(matches!(text(json!({ "relative_attention_num_buckets": 2 })), Err(Error::Config { .. })));
    assert!(matches!(text(json!({ "relative_attention_max_distance": 8 })), Err(Error::Config { .. })));
}

#[test]
fn two_experts_need_a_boundary_and_a_boundary_needs_two_experts() {
    let boundary = |index: Value| from::<ModelIndex>(index).boundary(path());
    let pair = json!(["diffusers", "WanTransformer3DModel"]);
    let both = json!({ "boundary_ratio": 0.875, "transformer_2": pair });
    assert_eq!(boundary(both).unwrap(), Some(875.0));
    let one = json!({ "boundary_ratio": null, "transformer_2": [null, null] });
    assert_eq!(boundary(one).unwrap(), None);
    assert_eq!(boundary(json!({})).unwrap(), None);
    for wrong in [
        json!({ "transformer_2": pair }),
        json!({ "boundary_ratio": 0.9 }),
        json!({ "boundary_ratio": 875.0, "transformer_2": pair }),
    ] {
        assert!(matches!(boundary(wrong.clone()), Err(Error::Config { .. })), "{wrong}");
    }
    for other in [json!({ "expand_timesteps": true }), json!({ "_class_name": "WanImageToVideoPipeline" })] {
        assert!(matches!(boundary(other.clone()), Err(Error::Unsupported { .. })), "{other}");
    }
}
