Feature: Counting
  What happened is counted, from the first moment on, in the form that Prometheus reads.

  Scenario: The page of numbers
    Given a server
    When I ask for "/metrics"
    Then it is answered
    And the answer is Prometheus text
    And the answer carries a correlation id

  Scenario Outline: <series> is there before anything has happened
    Given a server
    When I ask for "/metrics"
    Then the metrics have the <kind> "<series>" with the labels "<labels>"

    Examples:
      | kind      | series                              | labels                                                  |
      | counter   | tasks_enqueued_total                | engine, engine_version, pool_id, replica_id, priority   |
      | counter   | tasks_started_total                 | engine, engine_version, pool_id, replica_id, priority   |
      | counter   | tasks_canceled_total                | engine, engine_version, pool_id, replica_id, reason     |
      | counter   | tasks_rejected_total                | engine, reason                                          |
      | counter   | admission_backpressure_events_total | engine, policy                                          |
      | counter   | tokens_in_total                     | engine, engine_version, pool_id, replica_id             |
      | counter   | tokens_out_total                    | engine, engine_version, pool_id, replica_id             |
      | counter   | catalog_verifications_total         | result, reason, engine                                  |
      | gauge     | queue_depth                         | engine, engine_version, pool_id, priority               |
      | gauge     | kv_cache_usage_ratio                | engine, engine_version, pool_id, replica_id             |
      | gauge     | gpu_utilization                     | engine, engine_version, pool_id, replica_id, device     |
      | gauge     | vram_used_bytes                     | engine, engine_version, pool_id, replica_id, device     |
      | gauge     | model_state                         | model_id, state                                         |
      | histogram | latency_first_token_ms              | engine, engine_version, pool_id, priority               |
      | histogram | latency_decode_ms                   | engine, engine_version, pool_id, priority               |

  Scenario: A task leaves its traces
    Given a server
    When I send the task "story" with
      | max_tokens | 9    |
      | ignore_end | true |
    And I read the stream of "story" to its end
    Then the metrics count 1 "tasks_enqueued_total" by "priority" "interactive"
    And the metrics count 1 "tasks_started_total" by "priority" "interactive"
    And the metrics count 9 "tokens_out_total" by "engine" "cpu"
    And the metrics count some "tokens_in_total"
    And the metrics count 1 "latency_first_token_ms_count" by "priority" "interactive"
    And the metrics count 1 "latency_decode_ms_count" by "priority" "interactive"

  Scenario: The metrics tell how many wait, and of which kind
    Given a server
    And 1 task may run and 5 may wait
    And the long task "hog" is running
    When I send the task "person"
    And I send the task "machine" with
      | priority | "batch" |
    And I send the task "second machine" with
      | priority | "batch" |
    Then the metrics show "queue_depth" of "interactive" at 1
    And the metrics show "queue_depth" of "batch" at 2

  Scenario: A cancel is counted with its reason
    Given a server
    And the long task "story" is running
    When I cancel "story"
    Then the metrics count 1 canceled task

  Scenario: The memory in use shows while a task runs
    Given a server
    When I ask for "/metrics"
    Then the metrics show "kv_cache_usage_ratio" at 0
    Given the long task "story" is running
    Then the metrics show "kv_cache_usage_ratio" above 0

  Scenario: A model file that is looked at is counted, good or bad
    Given a server
    And a model "bent" that is cut in half
    When I ask for "/metrics"
    And I note the sum of "catalog_verifications_total"
    And I reload the pool with the model "bent"
    Then the sum of "catalog_verifications_total" has grown
