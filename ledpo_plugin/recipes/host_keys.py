"""LLaMA-Factory's own recipe keys, each decided on: it acts under the LEDPO stages, is refused, or need not be.

The table was made by going through the host's argument classes (0.9.5, and main at 0.9.6.dev0) field by field, and
through what reads them in the host, in transformers' Trainer and here. "Acts" is a key that something reads under a
LEDPO stage; where it acts with some losses, modes, stages or kinds of fine-tuning alone, other checks say so. A test
fails when the host has a key that is not in this table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ledpo_plugin.common.problem import Problem, problem

from .reading import Reading

OFF = (None, False)
ZERO = (None, False, 0)  # a weight of 0 switches it off, too


@dataclass(frozen=True)
class Refusal:
    """Why a key of the host is refused under the LEDPO stages, and what to do."""

    why: str
    fix: str
    harmless: tuple[object, ...] = OFF  # values that ask for nothing
    rollouts: bool = True  # False: it acts in stages that train on rollouts


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _same(keys: str, why: str, fix: str = "remove {key}", **more: object) -> dict[str, Refusal]:
    return {key: Refusal(why.format(key=key), fix.format(key=key), **more) for key in keys.split()}


ACTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "ModelArguments": _words(
            "model_name_or_path adapter_name_or_path adapter_folder cache_dir use_fast_tokenizer resize_vocab "
            "split_special_tokens add_tokens add_special_tokens new_special_tokens_config init_special_tokens "
            "model_revision low_cpu_mem_usage rope_scaling flash_attn shift_attn mixture_of_depths use_unsloth "
            "use_unsloth_gc enable_liger_kernel disable_gradient_checkpointing use_reentrant_gc upcast_layernorm "
            "upcast_lmhead_output train_from_scratch offload_folder use_kv_cache use_v1_kernels infer_dtype "
            "hf_hub_token ms_hub_token om_hub_token print_param_status trust_remote_code quantization_method "
            "quantization_bit quantization_type double_quantization quantization_device_map image_max_pixels "
            "image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels video_fps "
            "video_maxlen use_audio_in_video audio_sampling_rate use_kt kt_weight_path kt_expert_checkpoint_path "
            "kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size kt_cpu_activation "
            "kt_non_expert_weight_path"
        ),
        "DataArguments": _words(
            "template dataset eval_dataset dataset_dir media_dir cutoff_len streaming buffer_size mix_strategy "
            "interleave_probs overwrite_cache preprocessing_batch_size preprocessing_num_workers max_samples val_size "
            "eval_on_each_dataset tool_format default_system enable_thinking preserve_thinking tokenized_path "
            "data_shared_file_system"
        ),
        "TrainingArguments": _words(
            "output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type "
            "lr_scheduler_kwargs warmup_steps warmup_ratio optim optim_args weight_decay adam_beta1 adam_beta2 "
            "adam_epsilon optim_target_modules gradient_accumulation_steps max_grad_norm bf16 fp16 bf16_full_eval "
            "fp16_full_eval tf32 gradient_checkpointing gradient_checkpointing_kwargs torch_compile "
            "torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config use_cache "
            "neftune_noise_alpha torch_empty_cache_steps auto_find_batch_size logging_strategy logging_steps "
            "logging_first_step log_on_each_node include_num_input_tokens_seen log_level log_level_replica "
            "disable_tqdm report_to run_name project trackio_space_id eval_strategy eval_steps eval_delay "
            "per_device_eval_batch_size eval_on_start save_only_model save_strategy save_steps save_on_each_node "
            "save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy "
            "hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better "
            "ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu "
            "accelerator_config parallelism_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory "
            "dataloader_persistent_workers dataloader_prefetch_factor train_sampling_strategy "
            "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend ddp_timeout fsdp "
            "fsdp_config deepspeed debug skip_memory_metrics do_train do_eval resume_from_checkpoint logging_dir "
            "ray_num_workers ray_init_kwargs master_addr master_port fp8 fp8_backend "
            "fp8_enable_fsdp_float8_all_gather enable_torch_profiler profiler_output_dir profiler_wait_steps "
            "profiler_warmup_steps profiler_active_steps profiler_repeat profiler_record_shapes "
            "profiler_profile_memory profiler_with_stack profile_modules overwrite_output_dir"
        ),
        "FinetuningArguments": _words(
            "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules additional_target module_dropout "
            "oft_rank oft_block_size oft_target create_new_adapter lora_alpha lora_dropout lora_rank lora_target "
            "loraplus_lr_ratio loraplus_lr_embedding use_rslora use_dora pissa_init pissa_iter pissa_convert "
            "pref_beta pref_ftx pref_bco_weight pref_loss dpo_label_smoothing kto_chosen_weight kto_rejected_weight "
            "simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards ref_model "
            "ref_model_adapters ref_model_quantization_bit reward_model reward_model_adapters "
            "reward_model_quantization_bit reward_model_type ld_alpha use_galore galore_target galore_rank "
            "galore_update_interval galore_scale galore_proj_type galore_layerwise use_apollo apollo_target "
            "apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type "
            "apollo_layerwise apollo_scale_front use_badam badam_mode badam_start_block badam_switch_mode "
            "badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose use_swanlab swanlab_project "
            "swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir swanlab_lark_webhook_url "
            "swanlab_lark_secret pure_bf16 stage finetuning_type use_llama_pro use_adam_mini use_muon "
            "freeze_vision_tower freeze_multi_modal_projector freeze_language_model disable_shuffling "
            "early_stopping_steps plot_loss include_effective_tokens_per_second"
        ),
        "GeneratingArguments": frozenset(),
    }
)

_SFT = "{key} has no effect: it belongs to stage sft"
_METRICS = "a LEDPO stage measures every example of an evaluation itself, and nothing reads this"
_NO_GENERATION = "generation at evaluation serves only stage sft"
_PACKED = "rows of a LEDPO stage are not packed; the answers of a pair share their prompt without it where they can"
_EXPORT = "{key} has no effect: it belongs to llamafactory-cli export"
_SERVING = "{key} has no effect: it belongs to llamafactory-cli api and chat"
_SHARED = "the LEDPO stages that generate answers draw them by temperature, top_p and the like alone"

REFUSED: Mapping[str, Refusal] = MappingProxyType(
    {
        **_same("use_mca", "Megatron (MCA) has its own trainer, without the LEDPO stages"),
        **_same("use_megatron_bridge", "Megatron has its own trainer, without the LEDPO stages"),
        **_same("use_hyper_parallel hyper_parallel_args", "HyperParallel serves only stage sft"),
        **_same("hyper_parallel_cp_size", "HyperParallel serves only stage sft", harmless=(None, 1)),
        **_same("packing neat_packing", _PACKED),
        **_same("train_on_prompt", "preferences are about answers, so prompt tokens stay masked"),
        **_same("mask_history", "mask_history serves only stage sft"),
        **_same("predict_with_generate", _NO_GENERATION),
        **_same("eval_num_beams generation_max_length generation_num_beams generation_config", _NO_GENERATION),
        **_same("do_predict", "prediction serves only stage sft", "set do_eval: true for held-out metrics"),
        **_same(
            "moe_aux_loss_coef",
            "a LEDPO stage adds no auxiliary loss of the router to its own, so nothing would balance the load of the "
            "experts",
            harmless=ZERO,
        ),
        **_same(
            "ignore_pad_token_for_loss",
            "without it, padding would count as part of the answers",
            harmless=(None, True),
        ),
        **_same(
            "label_smoothing_factor",
            "it smooths the labels of stage sft's loss, which a LEDPO stage does not compute",
            "set dpo_label_smoothing",
            harmless=ZERO,
        ),
        **_same(
            "average_tokens_across_devices",
            "the loss of a LEDPO stage is a mean over examples, not over tokens",
        ),
        **_same(
            "logging_nan_inf_filter",
            "a LEDPO stage stops at a NaN loss, which this would hide in the average of the log",
        ),
        **_same("prediction_loss_only eval_accumulation_steps include_for_metrics batch_eval_metrics", _METRICS),
        **_same("eval_use_gather_object", _METRICS),
        **_same("eval_do_concat_batches", _METRICS, harmless=(None, True)),
        **_same("sortish_sampler", "nothing in transformers reads it any more"),
        **_same("length_column_name", "tokenized data has no column of lengths"),
        **_same("use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha compute_accuracy", _SFT),
        **_same(
            "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
            "export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id",
            _EXPORT,
        ),
        **_same("vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config", _SERVING),
        **_same("sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend", _SERVING),
        **_same("num_beams max_length length_penalty skip_special_tokens", _SHARED),
        **_same(
            "do_sample temperature top_p top_k max_new_tokens repetition_penalty",
            "{key} has no effect: it acts in ledpo_ppo and ledpo_alternate, which generate answers",
            rollouts=False,
        ),
    }
)

IGNORED: Mapping[str, str] = MappingProxyType(
    {
        "infer_backend": "LLaMA-Factory itself refuses all but huggingface in training",
        "remove_unused_columns": "LLaMA-Factory sets it to false in every stage, as collators need all columns",
        "label_names": "LLaMA-Factory fills it in, and a LEDPO stage knows its labels' columns itself",
        "local_rank": "torchrun says it by the environment; transformers keeps the key for old scripts",
    }
)


def decided() -> frozenset[str]:
    """Return every key of the host that is decided on."""
    return frozenset().union(*ACTS.values(), REFUSED, IGNORED)


def refused_in(recipe: Reading) -> dict[str, Refusal]:
    """Return the keys that the recipe sets and that are refused in its stage."""
    found = {key: rule for key, rule in REFUSED.items() if not _harmless(recipe.raw.get(key), rule)}
    stage = recipe.stage
    if stage is None:
        return found
    return {key: rule for key, rule in found.items() if rule.rollouts or not stage.rollouts}


def _harmless(value: object, rule: Refusal) -> bool:
    return any(type(value) in (type(fine), float) and value == fine for fine in rule.harmless)


def check_host_keys(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for every key of the host that would have no effect here, or that no LEDPO stage supports."""
    for key, rule in refused_in(recipe).items():
        yield problem(key, recipe.raw.get(key), rule.why, rule.fix)
    by_length = recipe.raw.get("train_sampling_strategy") == "group_by_length"
    if by_length and recipe.stage is not None and recipe.stage.data != "unpaired":
        why = "rows of pairs and of prompts have no input_ids whose length they could be grouped by"
        yield problem("train_sampling_strategy", "group_by_length", why, "remove train_sampling_strategy")
