"""Where each trap and each fault of the resilience pages is tested: a test that moves, vanishes or checks nothing is missed.

Traps are tests of exactly their name. Rules and faults are rows; the tests in `e2e/faults` run on sockets and on virtual time, those
in `chaos` on processes. What Turnout does not have is listed with its reason, not left out.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CORE, FLEET, GATE = "unit/core", "unit/core/fleet", "unit/core/admission"
FAULTS, HTTP, SDK, CHAOS, DISAGG, ZMQ = "e2e/faults", "e2e/http", "e2e/sdk", "chaos", "e2e/disagg", "unit/coordinator"

TRAPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "T15": (
        "test_permits_return_on_every_exit",
        (f"{CORE}/test_exchange_endings.py", f"{CORE}/test_exchange_recovery.py"),
    ),
    "T18": ("test_rerouted_means_resent", (f"{FAULTS}/test_traps.py",)),
    "T22": ("test_error_is_never_content", (f"{HTTP}/test_failures.py",)),
    "T28": ("test_upstream_503_passes_intact", (f"{HTTP}/test_failures.py",)),
    "T34": ("test_open_duration_is_honoured", (f"{FLEET}/test_breaker.py",)),
    "T35": ("test_dead_cheap_endpoints_hide_nobody", (f"{CORE}/test_resilience_traps.py",)),
    "T49": ("test_client_fault_opens_no_breaker", (f"{CORE}/test_resilience_traps.py", f"{HTTP}/test_failures.py")),
    "T70": ("test_nine_breaker_bugs", (f"{CORE}/test_resilience_traps.py",)),
    "T71": ("test_stream_failures_are_failures", (f"{HTTP}/test_failures.py",)),
    "T72": ("test_truncation_is_never_success", (f"{HTTP}/test_streams.py",)),
    "T73": ("test_nothing_committed_before_output", (f"{HTTP}/test_streams.py",)),
    "T74": ("test_retry_loop_cannot_spin", (f"{CORE}/test_resilience_traps.py", f"{HTTP}/test_failures.py")),
    "T75": ("test_retry_after_all_forms", ("unit/dialects/test_openai_answer.py",)),
    "T76": (
        "test_no_retry_multiplication",
        (f"{CORE}/test_resilience_traps.py", f"{SDK}/test_scripted.py", f"{SDK}/test_anthropic_scripted.py"),
    ),
    "T77": ("test_plain_400_never_fails_over", (f"{CORE}/test_resilience_traps.py", f"{HTTP}/test_failures.py")),
    "T78": ("test_dead_owner_gets_one_attempt", (f"{CORE}/test_resilience_traps.py", f"{HTTP}/test_failures.py")),
    "T79": ("test_hung_endpoint_is_isolated", (f"{FAULTS}/test_traps.py",)),
    "T80": ("test_busy_is_not_dead", (f"{FLEET}/test_ejection.py", f"{FAULTS}/test_traps.py")),
    "T81": ("test_no_permanent_quarantine", (f"{CORE}/test_resilience_traps.py",)),
    "T82": ("test_probes_survive_reload", (f"{FAULTS}/test_traps.py",)),
    "T83": ("test_refused_continuation_is_hidden", (f"{FAULTS}/test_rescue.py",)),
    "T84": ("test_fallback_switch_is_honoured", (f"{FAULTS}/test_fallback.py",)),
    "T85": ("test_fallback_stays_inside_the_key", (f"{FAULTS}/test_fallback.py",)),
    "T86": ("test_terminating_engine_is_noticed", (f"{FAULTS}/test_rescue.py",)),
    "T87": ("test_poison_kills_at_most_two", (f"{CORE}/test_exchange_recovery.py", f"{CHAOS}/test_changes.py")),
    "T19": (
        "test_decode_side_pushes_back",
        (f"{GATE}/test_gate.py", "unit/core/scheduling/test_disagg.py", f"{DISAGG}/test_backpressure.py"),
    ),
    "T20": ("test_queue_verdict_has_a_queue", (f"{CORE}/test_exchange_recovery.py",)),
    "T21": ("test_every_refusal_has_retry_after", (f"{GATE}/test_gate.py", f"{HTTP}/test_order.py")),
    "T40": (
        "test_leaving_client_frees_capacity",
        (f"{CORE}/test_exchange_recovery.py", f"{HTTP}/test_leaving.py"),
    ),
    "T88": ("test_full_is_503_greedy_is_429", (f"{GATE}/test_gate.py",)),
}

F42 = "test_F42_a_replica_at_a_tenth_of_the_speed_is_left_alone_within_twenty_requests_and_not_ejected"
PACE = f"{FAULTS}/test_pace.py"
CONNECTING, FLEETS, BAD = f"{FAULTS}/test_connecting.py", f"{FAULTS}/test_fleet.py", f"{HTTP}/test_failures.py"
NONE = "test_F13_to_F21_an_answer_that_is_none_is_502_and_its_connection_is_closed"
SPOILED = "test_F16_F17_a_connection_that_is_not_clean_is_not_kept_and_its_answer_is_delivered"
BROKEN = "test_a_broken_stream_is_joined_and_the_client_reads_one_answer"
STREAMS, LIMITS, FRAMING = f"{HTTP}/test_streams.py", f"{HTTP}/test_limits.py", f"{HTTP}/test_framing.py"

ROWS: dict[str, tuple[tuple[str, str], ...]] = {
    "F01": (
        (CONNECTING, "test_F01_a_closed_port_costs_one_attempt_and_no_time"),
        (CONNECTING, "test_F01_with_nobody_else_it_is_502"),
        (f"{CHAOS}/test_kill.py", "test_a_killed_engine_is_left_at_once_and_comes_back"),
    ),
    "F02": ((CONNECTING, "test_F02_F10_a_connection_that_never_comes_is_given_up_in_time"),),
    "F03": (
        (f"{FAULTS}/test_traps.py", "test_hung_endpoint_is_isolated"),
        (f"{CHAOS}/test_faults.py", "test_a_silent_engine_is_given_up_for_the_other"),
    ),
    "F04": (
        (BAD, "test_a_kept_connection_that_died_is_no_attempt_and_nobody_s_fault"),
        (BAD, "test_a_connection_closed_while_idle_is_not_used"),
    ),
    "F05": (
        (f"{CHAOS}/test_faults.py", "test_a_reset_before_the_head_is_invisible"),
        (f"{FAULTS}/test_scenarios.py", "test_attempts_and_answer"),
    ),
    "F06": (
        (CONNECTING, "test_F06_a_certificate_that_proves_nothing_is_no_connection"),
        (CONNECTING, "test_an_engine_behind_tls_is_asked_like_any_other"),
    ),
    "F07": (
        (CONNECTING, "test_F07_the_last_good_addresses_stay_for_an_hour"),
        (CONNECTING, "test_F07_a_name_that_never_led_anywhere_is_no_connection"),
        (CONNECTING, "test_F07_a_resolver_that_hangs_is_not_waited_for"),
    ),
    "F08": ((CONNECTING, "test_F08_a_name_that_moves_is_followed"),),
    "F09": ((CONNECTING, "test_F09_sixteen_addresses_at_most_and_no_private_ones_for_a_bought_service"),),
    "F10": ((CONNECTING, "test_F02_F10_a_connection_that_never_comes_is_given_up_in_time"),),
    "F11": ((f"{CHAOS}/test_faults.py", "test_running_out_of_file_descriptors_cuts_no_stream_and_spins_no_loop"),),
    "F12": ((f"{CHAOS}/test_ports.py", "test_F12_without_free_ports_kept_connections_go_on_and_no_engine_is_blamed"),),
    "F13": ((BAD, NONE), ("unit/http/test_response_head.py", "test_a_malformed_status_line_is_no_answer")),
    "F14": ((BAD, NONE), ("unit/http/test_response_head.py", "test_a_head_that_could_be_read_two_ways_is_no_answer")),
    "F15": ((BAD, "test_F15_a_body_shorter_than_announced_is_replaced"),),
    "F16": ((BAD, SPOILED),),
    "F17": ((BAD, SPOILED), (STREAMS, "test_a_stream_until_close_or_by_length_is_relayed")),
    "F18": ((BAD, NONE), (BAD, "test_F18_early_hints_are_swallowed")),
    "F19": ((BAD, NONE),),
    "F20": ((BAD, NONE), ("unit/http/test_response_head.py", "test_header_lines_are_bounded")),
    "F21": ((BAD, NONE), (STREAMS, "test_json_where_a_stream_was_asked_is_relayed_as_json")),
    "F22": (
        (f"{FAULTS}/test_rescue.py", BROKEN),
        (f"{FAULTS}/test_rescue.py", "test_what_cannot_be_joined_ends_in_band"),
        (f"{SDK}/test_scripted.py", "test_a_broken_stream_raises_in_the_sdk"),
        (f"{SDK}/test_anthropic.py", "test_a_stream_that_breaks_after_its_first_byte_raises"),
    ),
    "F23": (
        (f"{FAULTS}/test_rescue.py", BROKEN),
        (f"{FAULTS}/test_rescue.py", "test_terminating_engine_is_noticed"),
        (STREAMS, "test_a_stalled_stream_ends_in_band"),
    ),
    "F24": (
        (f"{FAULTS}/test_rescue.py", BROKEN),
        (STREAMS, "test_truncation_is_never_success"),
        (f"{SDK}/test_anthropic_scripted.py", "test_an_end_that_is_none_raises"),
    ),
    "F25": (
        (STREAMS, "test_any_rechunking_by_the_engine_relays_the_same_bytes"),
        (STREAMS, "test_W6_a_bad_event_is_dropped_and_the_stream_goes_on"),
        ("property/dialects/test_anthropic_properties.py", "test_any_rechunking_gives_the_same_events"),
    ),
    "F26": ((STREAMS, "test_W5_events_after_the_terminator_are_dropped"),),
    "F27": (
        (STREAMS, "test_U4_missing_usage_is_estimated"),
        (STREAMS, "test_U4_usage_of_a_whole_answer_that_cannot_be_is_estimated"),
        ("unit/core/test_pricing.py", "test_spend_is_never_negative"),
    ),
    "F28": (
        (PACE, "test_F28_a_stream_lives_while_an_output_event_comes_every_two_minutes"),
        (PACE, "test_F28_a_whole_answer_that_trickles_is_left_for_another"),
        (PACE, "test_F28_a_slow_answer_at_a_pace_is_waited_for"),
        (STREAMS, "test_an_engine_may_write_a_long_answer_byte_by_byte"),
    ),
    "F29": ((LIMITS, "test_L9_an_engine_is_read_no_faster_than_its_client_takes"),),
    "F30": ((STREAMS, "test_L9_a_client_that_takes_nothing_is_gone_and_the_engine_is_paused"),),
    "F31": (
        (f"{HTTP}/test_leaving.py", "test_client_gone_matrix_at_the_engine"),
        (f"{HTTP}/test_leaving.py", "test_client_gone_matrix_in_a_back_off"),
        (f"{HTTP}/test_leaving.py", "test_client_gone_matrix_while_waiting_for_the_retry_budget"),
        (f"{HTTP}/test_leaving.py", "test_client_gone_matrix_while_connecting"),
    ),
    "F32": ((f"{HTTP}/test_leaving.py", "test_client_gone_matrix_at_the_engine"),),
    "F33": ((FRAMING, "test_H17_pipelined_requests_are_answered_in_order_one_at_a_time"),),
    "F34": (
        (LIMITS, "test_F34_one_address_opens_so_many_connections_and_no_more"),
        (LIMITS, "test_F34_who_was_idle_for_longest_makes_room_when_it_gets_crowded"),
        (LIMITS, "test_L7_too_many_connections"),
        (LIMITS, "test_L6_an_idle_connection_is_closed_silently"),
    ),
    "F35": (
        (LIMITS, "test_L5_a_body_that_stops_is_408"),
        (LIMITS, "test_L5_a_trickled_head_is_408_although_bytes_arrive"),
    ),
    "F36": ((FRAMING, "test_H16_continue_comes_only_after_the_head_passed"),),
    "F37": ((FLEETS, "test_F37_one_replica_that_only_fails_costs_no_client_an_error"),),
    "F38": (
        (FLEETS, "test_F38_when_everybody_fails_attempts_stay_within_the_budget"),
        (f"{CORE}/test_retry_budget.py", "test_any_ten_seconds_stay_within_the_promise"),
    ),
    "F39": ((FLEETS, "test_F39_a_third_of_failures_ejects_relative_to_the_pool"),),
    "F40": ((f"{FLEET}/test_ejection.py", "test_f40_earlier_ejections_are_forgotten_after_ten_quiet_minutes"),),
    "F41": ((FLEETS, "test_F41_refused_for_the_rate_by_all_the_client_is_told_the_shortest_wait"),),
    "F42": (
        (f"{FAULTS}/test_slow.py", F42),
        (f"{FLEET}/test_learning.py", "test_replica_at_half_speed_is_believed_slow_and_its_peers_are_not"),
    ),
    "F43": (
        ("unit/core/scheduling/test_pipeline.py", "test_slow_start_gets_about_its_share"),
        (f"{FLEET}/test_registry.py", "test_joiner_starts_slowly_only_beside_traffic"),
    ),
    "F44": ((f"{FAULTS}/test_traps.py", "test_busy_is_not_dead"),),
    "F45": ((f"{FAULTS}/test_traps.py", "test_F45_an_engine_that_lies_about_its_health_is_out_after_three_stalls"),),
    "F46": ((f"{CHAOS}/test_changes.py", "test_poison_kills_at_most_two"),),
    "F47": (
        ("e2e/observation/test_engine_facts.py", "test_engine_that_starts_again_is_noticed"),
        (f"{FLEET}/test_registry.py", "test_same_identity_inherits_nothing"),
    ),
    "F48": ((FLEETS, "test_F48_an_engine_that_serves_another_model_is_not_asked_for_this_one"),),
    "F49": (
        (f"{CORE}/test_exchange.py", "test_context_overflow_goes_to_a_larger_context_only"),
        (f"{FAULTS}/test_scenarios.py", "test_attempts_and_answer"),
    ),
    "F50": ((FLEETS, "test_F50_a_thousand_engines_that_come_and_go_cost_little_each"),),
    "F51": (
        (FLEETS, "test_F51_an_empty_pool_holds_requests_until_somebody_comes"),
        (FLEETS, "test_F51_and_refuses_them_when_their_time_is_over"),
    ),
    "F52": ((f"{DISAGG}/test_failures.py", "test_row_8_a_decode_that_refuses_leaves_the_handover_to_another"),),
    "F53": ((f"{DISAGG}/test_failures.py", "test_other_leg_is_aborted"),),
    "F54": ((f"{DISAGG}/test_failures.py", "test_row_15_one_that_may_serve_alone_does"),),
    "F55": (
        (f"{FLEET}/test_informant.py", "test_event_gap_degrades_index"),
        ("e2e/observation/test_engine_facts.py", "test_faults_of_the_stream_are_healed_by_the_replay"),
    ),
    "F56": ((f"{FLEET}/test_learning.py", "test_precision_learns_from_reported_cached_tokens"),),
    "F57": (
        (f"{ZMQ}/test_door.py", "test_bad_message_never_stops_loop"),
        (f"{ZMQ}/test_door.py", "test_strangers_are_muted_after_ten_invalid_messages_and_known_peers_never"),
    ),
    "F58": (
        (f"{CHAOS}/test_coordinator.py", "test_a_killed_or_frozen_engine_costs_no_request"),
        (f"{CHAOS}/test_coordinator.py", "test_an_engine_that_thaws_is_taken_back"),
    ),
    "F59": ((f"{ZMQ}/test_door.py", "test_a_contested_identity_raises_an_alarm"),),
    "F60": (("e2e/coordinator/test_sockets.py", "test_a_restarted_door_adopts_the_engines_it_expects_or_remembers"),),
    "F61": (("e2e/coordinator/test_sockets.py", "test_a_peer_that_does_not_read_harms_nobody"),),
    "F62": (
        (f"{CHAOS}/test_drain.py", "test_sigterm_finishes_what_was_accepted_and_records_it"),
        (f"{HTTP}/test_drain.py", "test_X2_queued_requests_are_served_within_the_grace"),
        (f"{HTTP}/test_holding.py", "test_held_requests_are_served_within_the_grace"),
    ),
    "F63": (
        (f"{CHAOS}/test_drain.py", "test_a_second_signal_does_not_wait_for_the_grace"),
        (f"{HTTP}/test_drain.py", "test_X3_when_the_grace_is_over_everybody_is_told"),
    ),
    "F64": ((f"{CHAOS}/test_router_kill.py", "test_a_killed_router_leaves_one_row_for_every_status_line"),),
    "F65": ((f"{CHAOS}/test_ledger_kill.py", "test_every_status_line_has_one_row_after_kills"),),
    "F66": ((f"{CHAOS}/test_router_kill.py", "test_a_killed_router_leaves_one_row_for_every_status_line"),),
    "F68": ((f"{CHAOS}/test_standstill.py", "test_F68_a_blocked_loop_is_told_once_with_its_stack"),),
    "F69": (("architecture/test_resilience_rows.py", "test_F69_no_interval_is_measured_on_the_wall_clock"),),
    "F70": (
        (FLEETS, "test_F70_a_jump_of_ten_minutes_ends_no_stream_and_no_wait"),
        (f"{CHAOS}/test_standstill.py", "test_F70_a_suspended_router_fails_nobody_when_it_wakes"),
    ),
    "F76": (
        (f"{CHAOS}/test_configuration.py", "test_F76_a_file_that_cannot_be_used_changes_nothing"),
        (f"{CHAOS}/test_configuration.py", "test_F76_a_flood_of_reloads_and_swapped_links_loses_no_request"),
        (f"{CHAOS}/test_changes.py", "test_sighup_swaps_the_configuration_and_keeps_the_last_good_one"),
    ),
    "F77": (("unit/telemetry/test_logs.py", "test_a_blocked_sink_drops_and_counts_and_never_blocks"),),
    "F79": (("unit/telemetry/test_prometheus.py", "test_a_hundred_scrapes_within_a_second_cost_one"),),
    "F80": ((FLEETS, "test_F80_keys_rotate_without_dropping_a_stream"),),
    "F81": ((FLEETS, "test_F81_a_burst_is_admitted_queued_or_refused_at_once_and_nobody_is_lost"),),
    "F82": (
        (FLEETS, "test_F82_after_an_outage_clients_that_come_back_are_served_within_seconds"),
        ("simulation/test_world.py", "test_no_promise_is_broken"),
    ),
}
REMOVAL, ONE_OF_MANY = f"{FAULTS}/test_removal.py", f"{FAULTS}/test_one_of_many.py"
DEADLINES, RETRY = f"{FAULTS}/test_deadlines.py", f"{CORE}/test_exchange.py"
RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "D1": ((CONNECTING, "test_F02_F10_a_connection_that_never_comes_is_given_up_in_time"),),
    "D2": ((DEADLINES, "test_D2_the_last_possible_attempt_has_a_minute_for_its_first_token"),),
    "D2a": (
        (DEADLINES, "test_D2a_ten_seconds_while_somebody_else_can_be_asked"),
        (DEADLINES, "test_D2a_a_long_cold_prefill_is_waited_for"),
    ),
    "D3": (
        (DEADLINES, "test_D3_a_whole_answer_has_the_time_that_its_length_takes"),
        (DEADLINES, "test_D3_alone_there_is_the_total_deadline_only"),
        (DEADLINES, "test_D3_an_engine_whose_counter_moves_has_five_minutes_and_is_not_to_blame"),
    ),
    "D4": ((PACE, "test_D4_pings_count_and_comments_do_not"),),
    "D5": ((DEADLINES, "test_D5_one_deadline_for_all_attempts"),),
    "D6": ((DEADLINES, "test_D6_the_wait_for_a_place_ends_after_half_a_minute"),),
    "D7": ((f"{FAULTS}/test_sending.py", "test_D7_an_engine_that_takes_no_byte_is_left_for_another"),),
    "D8": ((BAD, "test_D8_idle_connections_to_engines_are_closed_by_us"),),
    "N1": (
        (RETRY, "test_n1_three_attempts_on_one_model"),
        (f"{CORE}/test_exchange_recovery.py", "test_n1_three_models_and_six_attempts_at_most"),
    ),
    "N2": (
        (RETRY, "test_n2_another_endpoint_comes_first_and_at_once"),
        (RETRY, "test_n2_same_endpoint_once_then_standby"),
        (RETRY, "test_n2_an_endpoint_believed_broken_comes_last"),
    ),
    "N3": ((RETRY, "test_n3_a_tried_endpoint_returns_only_as_the_same_endpoint"),),
    "N4": ((RETRY, "test_n4_the_same_endpoint_is_asked_again_after_growing_pauses"),),
    "N5": (
        (FLEETS, "test_F38_when_everybody_fails_attempts_stay_within_the_budget"),
        (RETRY, "test_n5_a_try_elsewhere_waits_for_the_budget"),
    ),
    "N6": ((f"{FAULTS}/test_fallback.py", "test_fallback_stays_inside_the_key"),),
    "N7": ((RETRY, "test_n7_a_breaker_that_opened_during_the_pause_is_respected"),),
    "N8": (
        (f"{CORE}/test_exchange_recovery.py", "test_n8_a_death_is_noticed_within_a_second_of_the_end_and_not_later"),
        (f"{CHAOS}/test_changes.py", "test_poison_kills_at_most_two"),
    ),
    "N9": ((BAD, "test_N9_our_own_error_tells_every_attempt_without_an_address"),),
    "N10": ((f"{FAULTS}/test_traps.py", "test_rerouted_means_resent"),),
    "G1": ((STREAMS, "test_nothing_committed_before_output"),),
    "G2": ((STREAMS, "test_W1_the_head_goes_out_with_the_first_output_event"),),
    "G3": (
        (BAD, "test_stream_failures_are_failures"),
        (STREAMS, "test_json_where_a_stream_was_asked_is_relayed_as_json"),
    ),
    "G4": ((STREAMS, "test_half_a_whole_answer_is_never_delivered"),),
    "G5": (("failover/test_scenarios.py", "test_fast_streams_stay_incremental"),),
    "R1": (
        (f"{CORE}/test_exchange_recovery.py", "test_r1_a_broken_stream_is_joined_once_by_an_untried_endpoint"),
        (f"{FAULTS}/test_rescue.py", "test_r1_another_model_joins_the_stream_when_the_scope_says_so"),
    ),
    "R2": ((f"{CORE}/recovery/test_rescue.py", "test_ways"),),
    "R3": ((f"{FAULTS}/test_rescue.py", "test_refused_continuation_is_hidden"),),
    "R4": ((f"{FAULTS}/test_rescue.py", BROKEN),),
    "R5": ((f"{FAULTS}/test_rescue.py", "test_another_answer_is_never_shown"),),
    "R6": (("failover/test_scenarios.py", "test_the_joined_stream_is_one_stream"),),
    "R7": (
        ("failover/test_scenarios.py", "test_the_ledger_tells_of_both_attempts"),
        (f"{FAULTS}/test_rescue.py", BROKEN),
    ),
    "R8": (
        (BAD, "test_error_is_never_content"),
        (f"{FAULTS}/test_rescue.py", "test_what_cannot_be_joined_ends_in_band"),
    ),
    "R9": ((f"{FAULTS}/test_rescue.py", "test_terminating_engine_is_noticed"),),
    "Y1": ((RETRY, "test_y1_the_same_endpoint_is_waited_for_as_long_as_it_asked"),),
    "Y2": ((BAD, "test_Y2_after_several_attempts_the_shortest_retry_after_is_rounded_up"),),
    "Y3": ((RETRY, "test_y3_the_next_exchange_avoids_an_endpoint_in_cooldown"),),
    "Y4": (
        (
            f"{CHAOS}/test_faults.py",
            "test_when_everyone_refuses_the_last_refusal_is_relayed_with_the_shortest_retry_after",
        ),
        (f"{CHAOS}/test_changes.py", "test_a_full_queue_says_503_and_when_to_come_back"),
    ),
    "Z1": ((f"{CHAOS}/test_changes.py", "test_a_slow_first_token_is_hedged"),),
    "Z2": ((f"{CORE}/recovery/test_hedging.py", "test_z2_it_is_the_95th_percentile_but_never_below_50_ms"),),
    "Z3": (
        (f"{CORE}/recovery/test_hedging.py", "test_z3_hedges_are_a_twentieth_of_the_attempts_of_a_minute"),
        (f"{FAULTS}/test_hedging.py", "test_Z3_the_loser_is_cancelled_at_once_and_hedges_stay_a_twentieth"),
    ),
    "B1": (
        (f"{FLEET}/test_breaker.py", "test_three_faults_in_a_row_open_it"),
        (f"{FLEET}/test_breaker.py", "test_half_of_ten_results_open_it"),
    ),
    "B2": ((f"{FLEET}/test_breaker.py", "test_bt6_malformed_answer_does_not_reset_the_row"),),
    "B3": ((f"{FLEET}/test_breaker.py", "test_open_time_doubles_up_to_its_cap"),),
    "B4": ((f"{FLEET}/test_breaker.py", "test_bt7_late_failures_do_not_move_the_reopening"),),
    "B5": (
        (f"{FLEET}/test_breaker.py", "test_bt2_half_open_lets_one_attempt_of_a_thousand_through"),
        (f"{FLEET}/test_breaker.py", "test_lost_lease_returns_with_the_deadline"),
    ),
    "B6": ((f"{FLEET}/test_breaker.py", "test_fault_in_half_open_opens_it_again_for_longer"),),
    "B7": ((f"{FLEET}/test_breaker.py", "test_share_grows_from_a_tenth_after_closing"),),
    "B8": ((DEADLINES, "test_B8_what_becomes_of_an_endpoint_is_told_once_however_many_requests_notice"),),
    "B9": (
        (f"{CORE}/test_resilience_traps.py", "test_nine_breaker_bugs"),
        (f"{FLEET}/test_registry.py", "test_retry_after_is_the_time_to_the_earliest_return"),
    ),
    "B10": (
        (REMOVAL, "test_B10_a_breaker_survives_reloads_that_leave_its_endpoint_as_it_was"),
        (REMOVAL, "test_B10_a_breaker_dies_with_its_incarnation"),
    ),
    "O1": ((DEADLINES, "test_O1_an_unreachable_endpoint_is_looked_for_after_a_fifth_of_a_second_one_and_three"),),
    "O2": ((FLEETS, "test_F39_a_third_of_failures_ejects_relative_to_the_pool"),),
    "O3": ((f"{FLEET}/test_ejection.py", "test_o3_at_most_half_of_a_pool_is_out"),),
    "O4": ((DEADLINES, "test_O4_probes_come_every_two_seconds_and_three_that_fail_take_an_idle_endpoint_out"),),
    "O5": ((f"{FAULTS}/test_traps.py", "test_busy_is_not_dead"),),
    "O6": ((f"{FAULTS}/test_traps.py", "test_probes_survive_reload"),),
    "I1": ((f"{FLEET}/test_registry.py", "test_same_identity_inherits_nothing"),),
    "I2": ((f"{FLEET}/test_registry.py", "test_removal_is_idempotent"),),
    "I3": (
        (REMOVAL, "test_I3_what_runs_on_a_removed_endpoint_runs_on_while_its_process_lives"),
        (REMOVAL, "test_I3_a_connection_that_breaks_after_the_removal_is_a_failure_as_any_other"),
        (REMOVAL, "test_I3_nobody_waits_for_a_removed_process_that_is_gone"),
        (REMOVAL, "test_I3_nobody_waits_for_the_life_before_a_restart"),
        (REMOVAL, "test_I3_a_late_answer_to_a_client_that_left_reaches_nobody"),
        (f"{CORE}/test_exchange_endings.py", "test_permits_of_a_replaced_endpoint_return_to_its_own_incarnation"),
    ),
    "I4": ((FLEETS, "test_F51_an_empty_pool_holds_requests_until_somebody_comes"),),
    "I5": ((CONNECTING, "test_F07_the_last_good_addresses_stay_for_an_hour"),),
    "Q1": (
        (f"{GATE}/test_gate.py", "test_free_places_admit_at_once"),
        (f"{GATE}/test_gate.py", "test_a_full_pool_lets_wait"),
    ),
    "Q2": ((f"{GATE}/test_gate.py", "test_full_is_503_greedy_is_429"),),
    "Q3": ((f"{FAULTS}/test_capacity.py", "test_Q3_a_prompt_larger_than_every_cache_is_refused_before_it_waits"),),
    "Q4": (
        (f"{GATE}/test_gate.py", "test_q4_bodies_are_bounded_too"),
        (f"{GATE}/test_gate.py", "test_decode_side_pushes_back"),
    ),
    "Q5": (
        (f"{GATE}/test_queue.py", "test_start_tags_are_those_of_start_time_fair_queueing"),
        ("property/core/test_admission.py", "test_backlogged_tenants_get_work_by_their_weights"),
    ),
    "Q6": (("property/core/test_admission.py", "test_permits_return_and_nobody_is_lost"),),
    "Q7": ((f"{GATE}/test_gate.py", "test_q7_what_cannot_be_served_in_time_is_shed_on_arrival"),),
    "Q8": ((f"{GATE}/test_gate.py", "test_q8_retry_after"),),
    "Q9": ((f"{GATE}/test_gate.py", "test_full_is_503_greedy_is_429"),),
    "Q10": ((f"{GATE}/test_gate.py", "test_q10_anonymous_requests_leave_one_place_and_one_queue_slot"),),
    "Q11": ((f"{FAULTS}/test_capacity.py", "test_an_engine_that_falls_silent_is_not_full_for_ever"),),
    "X1": ((f"{HTTP}/test_drain.py", "test_X1_not_ready_at_once_and_open_until_the_notice_is_over"),),
    "X2": ((f"{HTTP}/test_drain.py", "test_X2_queued_requests_are_served_within_the_grace"),),
    "X3": ((f"{CHAOS}/test_drain.py", "test_a_second_signal_does_not_wait_for_the_grace"),),
    "X4": ((f"{CHAOS}/test_changes.py", "test_a_rolling_restart_of_all_engines_loses_no_request"),),
    "X5": ((f"{CHAOS}/test_changes.py", "test_sighup_swaps_the_configuration_and_keeps_the_last_good_one"),),
    "P1": ((f"{CHAOS}/test_drain.py", "test_sigterm_finishes_what_was_accepted_and_records_it"),),
    "P2": (("simulation/test_world.py", "test_no_promise_is_broken"),),
    "P3": ((f"{CHAOS}/test_storm.py", "test_no_client_is_refused_lied_to_or_left_hanging"),),
    "P4": ((DEADLINES, "test_D5_one_deadline_for_all_attempts"),),
    "P5": ((RETRY, "test_p5_a_refused_connection_takes_the_endpoint_out_at_once"),),
    "P6": (
        (ONE_OF_MANY, "test_P6_one_endpoint_that_fails_costs_no_client_an_error"),
        (ONE_OF_MANY, "test_P6_one_endpoint_that_says_nothing_costs_no_client_an_error"),
        (ONE_OF_MANY, "test_P6_one_endpoint_that_takes_no_connection_costs_no_client_an_error"),
        (f"{CHAOS}/test_storm.py", "test_no_client_is_refused_lied_to_or_left_hanging"),
    ),
    "P7": (
        (
            f"{FAULTS}/test_overload.py",
            "test_P7_three_times_the_capacity_costs_little_is_refused_at_once_and_shared_fairly",
        ),
        ("simulation/test_world.py", "test_no_promise_is_broken"),
    ),
}
NOT_BUILT = {
    "F67": "a router is one process: there are no sibling workers, and whoever supervises it restarts it",
    "F78": "there is no OTLP exporter that could wait for a collector",
}

# Instants that are shown or stored; durations are monotonic, and the core is handed both.
WALL_CLOCK = {"app.py", "cli/ledger.py", "ledger/process.py", "sim/pump.py", "sim/server.py", "coordinator/text.py"}


@cache
def named_in(path: str) -> dict[str, ast.FunctionDef]:
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def problem(path: str, name: str) -> str:
    """What is wrong with a test: it is not there, switched off, or checks nothing."""
    test = named_in(path).get(name)
    if test is None:
        return f"{path} has no {name}"
    if any("skip" in ast.unparse(mark) or "xfail" in ast.unparse(mark) for mark in test.decorator_list):
        return f"{path}::{name} is switched off"
    said = ast.unparse(test)
    checks = ("assert ", "pytest.raises(", "refused(", ".play(")  # the last ones are helpers that assert
    return "" if any(word in said for word in checks) else f"{path}::{name} checks nothing"


@pytest.mark.parametrize(("name", "paths"), TRAPS.values(), ids=TRAPS)
def test_each_trap_of_resilience_and_admission_is_a_test_of_its_name(name: str, paths: tuple[str, ...]) -> None:
    assert [found for path in paths if (found := problem(path, name))] == []


@pytest.mark.parametrize("tests", ROWS.values(), ids=ROWS)
def test_each_fault_has_its_tests(tests: tuple[tuple[str, str], ...]) -> None:
    assert [found for path, name in tests if (found := problem(path, name))] == []


@pytest.mark.parametrize("tests", RULES.values(), ids=RULES)
def test_each_rule_has_its_tests(tests: tuple[tuple[str, str], ...]) -> None:
    assert [found for path, name in tests if (found := problem(path, name))] == []


def test_no_rule_is_forgotten() -> None:
    numbers = {"D": 8, "N": 10, "G": 5, "R": 9, "Y": 4, "Z": 3, "B": 10, "O": 6, "I": 5, "Q": 11, "X": 5, "P": 7}
    assert RULES.keys() == {"D2a"} | {f"{letter}{n + 1}" for letter, most in numbers.items() for n in range(most)}


def test_no_fault_is_forgotten() -> None:
    rows = {f"F{number:02}" for number in (*range(1, 71), *range(76, 83))}
    assert rows == ROWS.keys() | NOT_BUILT.keys()
    assert ROWS.keys().isdisjoint(NOT_BUILT)


def test_F69_no_interval_is_measured_on_the_wall_clock() -> None:
    source = TESTS.parent / "src" / "turnout"
    users = set()
    for path in source.rglob("*.py"):
        calls = [ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        if {"time.time", "time.time_ns", "datetime.now", "dt.datetime.now", "datetime.datetime.now"}.intersection(
            calls
        ):
            users.add(path.relative_to(source).as_posix())
    assert users == WALL_CLOCK
