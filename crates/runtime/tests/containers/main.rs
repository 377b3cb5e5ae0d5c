//! Real containers on this machine: what they can do, what they cannot, how they end, and that they
//! leave nothing. Need root and busybox-static.
//!
//! One conformance suite, run with every runtime: `cargo nextest run -p longshore-runtime runc::`. A
//! runtime that this kernel does not suit, by its own word, is skipped and says so; one that is not
//! installed fails.

mod bed;

mod attach;
mod copying;
mod end;
mod escapes;
mod exec;
mod limits;
mod logs;
mod protection;
mod start;
mod survival;
mod users;

/// Makes a test of every function, for every runtime. A function that is not listed is dead code,
/// which the compiler complains of.
macro_rules! with_every_runtime {
    ($tests:tt) => {
        with_every_runtime!(embedded, Embedded, $tests);
        with_every_runtime!(runc, Runc, $tests);
        with_every_runtime!(crun, Crun, $tests);
        with_every_runtime!(runsc, Runsc, $tests);
    };
    ($module:ident, $runtime:ident, { $($file:ident { $($test:ident)* })* }) => {
        mod $module {
            $(mod $file {
                $(#[tokio::test]
                async fn $test() {
                    use longshore_types::RuntimeName::$runtime;
                    if let Some(bed) = crate::bed::Bed::new($runtime) {
                        crate::$file::$test(bed).await;
                    }
                })*
            })*
        }
    };
}

with_every_runtime!({
    attach {
        the_program_waits_for_its_client
        all_of_much_output_comes_also_to_a_slow_client
        its_terminal_is_that_of_the_first_process
        keys_are_signals_to_what_runs_in_it
        it_ends_with_a_client_that_left_without_a_word
        one_that_waits_can_be_stopped_and_one_that_cannot_run_says_so
    }
    copying {
        a_tree_comes_out_and_goes_in_as_it_is
        an_image_needs_no_program_for_it
        mounts_of_the_container_are_part_of_its_files
        links_inside_lead_to_what_is_the_containers
        what_cannot_be_copied_is_said
        it_ends_with_its_pipe_and_with_its_container
        it_has_few_rights_and_is_not_seen_inside
    }
    end {
        exit_codes_are_kept
        a_killed_first_process_is_a_signal
        a_signal_reaches_the_program
        stop_asks_first
        stop_ends_what_does_not_listen
        many_may_wait_and_one_may_shorten_the_grace
    }
    escapes {
        the_runtimes_program_is_not_overwritten
        a_working_directory_does_not_lead_out
        links_in_the_image_do_not_lead_mounts_out
        links_that_change_during_a_start_do_not_lead_out
        links_that_a_container_changes_do_not_lead_out
        no_helper_of_the_kernel_is_replaced
        no_socket_or_descriptor_of_the_agent_is_inside
        processes_of_the_host_are_out_of_reach
    }
    exec {
        output_and_exit_code_come_back
        the_same_protections_apply
        what_cannot_run_is_refused
        what_a_killed_exec_process_leaves_is_ended
        it_ends_with_its_caller_and_with_its_container
        input_is_read_to_its_end
        a_terminal_has_its_size_and_its_session
        a_terminal_is_resized_and_takes_keys
        a_signal_reaches_the_group
        a_left_terminal_takes_its_session_along
    }
    limits {
        limits_are_what_was_asked_for
        processes_are_limited
        a_memory_hog_ends_as_out_of_memory
        a_hog_behind_a_shell_is_told_apart_from_one_that_is_survived
        a_fork_bomb_is_ended_whole
        what_is_written_to_dev_shm_is_memory
        a_busy_container_gets_its_share_of_the_processor
        open_files_are_limited_and_the_limit_is_seen
    }
    logs {
        both_streams_are_kept
        a_follower_sees_every_line_over_rotations
        a_flood_is_written_whole
    }
    protection {
        the_kernel_shows_every_protection
        another_user_has_no_capabilities_and_can_open_its_output
        forbidden_calls_are_refused
        the_hosts_disk_cannot_be_opened_even_through_a_node_in_the_image
        masked_paths_are_empty_and_kernel_settings_read_only
        no_descriptor_of_the_host_is_inherited
        the_program_of_the_shim_cannot_be_written_to
        namespaces_are_the_containers_own
        a_network_namespace_can_be_joined
    }
    start {
        the_process_is_what_was_asked_for
        a_start_that_cannot_work_says_why_and_leaves_a_record
        an_instance_runs_once_and_can_run_again
        twenty_start_at_once
    }
    survival {
        a_container_outlives_its_agent
        what_ends_without_an_agent_is_on_record
        a_dead_shim_takes_its_container_along
        agent_and_shim_dead_together_are_noticed_at_adoption
        a_shim_survives_what_it_does_not_understand
        another_boot_is_a_restart_of_the_node
        a_start_cut_off_at_any_moment_leaves_nothing
    }
    users {
        root_inside_is_nobody_on_the_machine
        what_is_made_for_the_container_belongs_to_it
        files_of_the_machine_are_nobodys_inside
        root_of_one_container_has_no_power_over_another
        an_exec_joins_the_users_of_the_container
        a_container_may_do_without
        what_cannot_be_is_refused_in_plain_words
    }
});
