Feature: What a task is promised
  Its place, when it starts, when it is worth coming back, and how likely it is to be in time.

  Scenario: The place in the queue is exact
    Given a server
    And 1 task may run and 8 may wait
    And the long task "hog" is running
    When I send the task "machine" with
      | priority | "batch" |
    Then the answer's "queue_position" is 0
    When I send the task "first"
    Then the answer's "queue_position" is 0
    When I send the task "second"
    Then the answer's "queue_position" is 1
    When I send the task "second machine" with
      | priority | "batch" |
    Then the answer's "queue_position" is 3

  Scenario: A task starts about when it was said to
    Given a server
    And 1 task may run and 4 may wait
    And a long task has been done
    And the long task "hog" is running
    When I send the task "story"
    And I read the stream of "story" to its end
    Then "story" began about when its answer said, give or take a factor of 4

  Scenario: With room in the queue there is no reason to hold back
    Given a server
    When I send the task "story"
    Then the answer's "backoff_ms" is 0

  Scenario: Who takes the last place is told to hold the next one back
    Given a server
    And 1 task may run and 1 may wait
    And the long task "hog" is running
    When I send the task "last"
    Then the answer's "backoff_ms" is more than 0

  Scenario: Who comes back when told to finds a place
    Given a server
    And 1 task may run and 1 may wait
    And a long task has been done
    And the queue is full of tasks of 300 tokens
    When I send the task "late"
    Then it is refused as "ADMISSION_REJECT"
    When I come back with "late" when I was told to, again and again until I am let in
    Then I came back at most 2 times
    And the stream of "late" ends properly

  Scenario: The chance to be in time is told at once
    Given a server
    When I send the task "story" with
      | deadline_ms | 600000 |
    Then the answer's "on_time_probability" is more than 0.5

  Scenario: The chance to be in time is told anew while the task is written
    Given a server
    And the setting on_time_probability_floor is "0"
    And the setting metrics_interval_ms is "20"
    When I send the long task "slow" with
      | deadline_ms | 700 |
    And I open the stream of "slow"
    Then the stream of "slow" ends with the error "DEADLINE_UNMET"
    And the stream of "slow" has more than 2 metrics events
    And the last on_time_probability of "slow" is under 0.1

  @faults
  Scenario: The chance falls with every word of a story that gets longer than was said
    Given a server
    And the setting on_time_probability_floor is "0"
    And the setting metrics_interval_ms is "20"
    And the engine needs 10 ms for every step
    And a quick task has been done
    When I send the task "long-winded" with
      | max_tokens      | 400  |
      | expected_tokens | 20   |
      | deadline_ms     | 1000 |
    And I open the stream of "long-winded"
    Then the stream of "long-winded" ends with the error "DEADLINE_UNMET"
    And the stream of "long-winded" has at least 30 tokens
    And the metrics event of "long-winded" tells "on_time_probability"
    And the first on_time_probability of "long-winded" is over 0.5
    And the last on_time_probability of "long-winded" is under 0.5

  Scenario: Who wants to try against the odds may be let in
    Given a server
    And the setting on_time_probability_floor is "0"
    And 1 task may run and 8 may wait
    And a quick task has been done
    And the long task "hog" is running
    When I send the task "hasty" with
      | deadline_ms | 100 |
      | max_tokens  | 400 |
      | ctx         | 512 |
    Then it is accepted
    And the answer's "on_time_probability" is less than 0.2

  Scenario: A stricter house turns away who only might be in time
    Given a server
    And the setting on_time_probability_floor is "0.99"
    And 1 task may run and 8 may wait
    And a quick task has been done
    And the long task "hog" is running
    When I send the task "hasty" with
      | deadline_ms | 100 |
      | max_tokens  | 400 |
      | ctx         | 512 |
    Then it is refused as "DEADLINE_UNMET"
    And the metrics count 2 accepted tasks

  @faults
  Scenario: A task that waits and cannot be in time any more is let go before its deadline
    Given a server
    And the setting on_time_probability_floor is "0.5"
    And 1 task may run and 8 may wait
    And the engine needs 10 ms for every step
    And a quick task has been done
    When I send the task "hog" with
      | max_tokens | 40   |
      | ignore_end | true |
    And I send the task "machine" with
      | priority    | "batch" |
      | max_tokens  | 200     |
      | ignore_end  | true    |
      | deadline_ms | 6000    |
    Then it is accepted
    When I send 12 people ahead of it with 80 tokens each
    And I open the stream of "machine"
    Then the stream of "machine" ends with the error "DEADLINE_UNMET"
    And the stream of "machine" has 0 tokens
    And the error of "machine" says that it "could not be met any more"

  Scenario: What a client says about the length of a task is believed
    Given a server
    And 1 task may run and 8 may wait
    And a long task has been done
    And the long task "hog" is running
    When I send the task "ahead" with
      | ctx             | 2048 |
      | max_tokens      | 1900 |
      | expected_tokens | 1800 |
    And I send the task "behind a long one"
    And I cancel "behind a long one"
    And I cancel "ahead"
    And I send the task "ahead again" with
      | ctx             | 2048 |
      | max_tokens      | 1900 |
      | expected_tokens | 5    |
    And I send the task "behind a short one"
    Then "behind a short one" is to start sooner than "behind a long one"

  @faults
  Scenario: How long the tasks of a session are is learned
    Given a server
    And 1 task may run and 8 may wait
    And the engine needs 5 ms for every step
    And 12 short tasks have been done in the session "mine", each allowed 1900 tokens
    And 6 long tasks have been done in the session "theirs", each allowed 100 tokens
    When I send the task "hog" with
      | max_tokens | 400  |
      | ignore_end | true |
    And I open the stream of "hog"
    And 1 token of "hog" has arrived
    And I send the task "ahead" in the session "mine" with
      | ctx        | 2048 |
      | max_tokens | 1900 |
    And I send the task "behind one like mine"
    And I cancel "behind one like mine"
    And I cancel "ahead"
    And I send the task "ahead again" in the session "theirs" with
      | ctx        | 2048 |
      | max_tokens | 1900 |
    And I send the task "behind one like theirs"
    Then "behind one like mine" is to start at least 5000 ms sooner than "behind one like theirs"

  @faults
  Scenario: A session that nobody knows yet is taken for one like the others
    Given a server
    And 1 task may run and 8 may wait
    And the engine needs 5 ms for every step
    And a quick task has been done
    When I send the task "hog" with
      | max_tokens | 400  |
      | ignore_end | true |
    And I open the stream of "hog"
    And 1 token of "hog" has arrived
    And I send the task "ahead" with
      | ctx        | 2048 |
      | max_tokens | 1900 |
    And I send the task "behind a stranger"
    And I cancel "behind a stranger"
    And I cancel "ahead"
    And I cancel "hog"
    Given 12 short tasks have been done in the session "theirs", each allowed 1900 tokens
    When I send the task "hog again" with
      | max_tokens | 400  |
      | ignore_end | true |
    And I open the stream of "hog again"
    And 1 token of "hog again" has arrived
    And I send the task "ahead again" in the session "a new one" with
      | ctx        | 2048 |
      | max_tokens | 1900 |
    And I send the task "behind another stranger"
    Then "behind another stranger" is to start at least 500 ms sooner than "behind a stranger"

  Scenario: What was learned outlives a new model
    Given a server
    And 1 task may run and 8 may wait
    And a model "second" that is a sound copy
    And 12 short tasks have been done in the session "mine", each allowed 1900 tokens
    When I reload the pool with the model "second"
    And I send the long task "hog" with
      | model_ref | "second" |
    And I open the stream of "hog"
    And 300 tokens of "hog" have arrived
    And I send the task "ahead" in the session "mine" with
      | ctx        | 2048     |
      | max_tokens | 1900     |
      | model_ref  | "second" |
    And I send the task "behind one like those before" with
      | model_ref | "second" |
    And I cancel "behind one like those before"
    And I cancel "ahead"
    And I send the task "ahead again" with
      | ctx        | 2048     |
      | max_tokens | 1900     |
      | ignore_end | true     |
      | model_ref  | "second" |
    And I send the task "behind an endless one" with
      | model_ref | "second" |
    Then "behind one like those before" is to start sooner than "behind an endless one"
