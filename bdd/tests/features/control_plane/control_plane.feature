Feature: Looking after a pool
  An operator sees how a pool is, takes it out of service, and gives it another model.

  Scenario: The pool tells how it is
    Given a server
    When I ask how the pool is
    Then it is answered
    And the answer tells "live, ready, draining, metrics, model"
    And the pool is live and ready and not draining
    And the answer carries a correlation id

  Scenario: A pool that does not exist is not found
    Given a server
    When I ask for "/v1/pools/nowhere/health"
    Then it is refused as "NOT_FOUND"

  Scenario: Draining is accepted and shows in the pool's health
    Given a server
    When I drain the pool and give it 5000 ms to finish
    Then it is accepted
    When I ask how the pool is
    Then the pool is draining

  Scenario: A pool takes another model
    Given a server
    And a model "second" that is a sound copy
    When I reload the pool with the model "second"
    Then it is answered
    When I ask how the pool is
    Then the pool is live and ready and not draining
    And the pool serves the model "second"
    When I send the task "story" with
      | model_ref | "second" |
    And I read the stream of "story" to its end
    Then the stream of "story" ends properly

  Scenario: A new model shows in the model's state
    Given a server
    And a model "second" that is a sound copy
    When I reload the pool with the model "second"
    Then it is answered
    And the metrics show the model "second" among those that are loaded

  Scenario Outline: A model that <flaw> is refused and the old one serves on
    Given a server
    And a model "bent" that <flaw>
    When I reload the pool with the model "bent"
    Then it is refused as "RELOAD_CONFLICT"
    And the answer carries a correlation id
    When I ask how the pool is
    Then the pool is live and ready and not draining
    And the pool serves the model "wren"
    And the pool tells what went wrong last
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the stream of "story" ends properly

    Examples:
      | flaw                 |
      | does not exist       |
      | is cut in half       |
      | has a damaged header |
      | is an empty file     |
      | is a text file       |

  Scenario: The server tells what it can do
    Given a server
    When I ask for "/v1/capabilities"
    Then it is answered
    And the answer tells "api_version, engines"
    And the engine "cpu" tells "engine_version, ctx_max, concurrency, supported_workloads, models, features, rate_limits"
    And the engine "cpu" serves the model "wren"
    And the engine "cpu" does the workload "completion"

  Scenario: The number of tasks that run together is told
    Given a server
    And 3 tasks may run and 5 may wait
    When I ask for "/v1/capabilities"
    Then the engine "cpu" runs 3 tasks together
