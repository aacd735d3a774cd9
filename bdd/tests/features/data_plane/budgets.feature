Feature: Budgets
  A session knows what it may still spend, says so on every answer, and is stopped when it is spent.

  Background:
    Given a server
    And a session may spend 100 tokens, 60000 ms and 5 units of money
    And a token costs 0.01

  Scenario: The budgets on the answer and on the stream are those of a new session
    When I send the task "story" in the session "mine"
    Then it is accepted
    And the budgets of the answer are 100 tokens, 60000 ms and 5 units of money
    When I read the stream of "story" to its end
    Then the stream of "story" carries the budgets

  Scenario: What was written is spent when the stream ends
    When I send the task "story" in the session "mine" with
      | max_tokens | 20   |
      | ignore_end | true |
    And I read the stream of "story" to its end
    And I ask for the session "mine"
    Then the answer's "tokens_budget_remaining" is 80
    And the answer's "cost_budget_remaining" is 4.8
    And the answer's "time_budget_remaining_ms" is less than 60000
    When I send the task "next" in the session "mine"
    Then the budget of the answer is 80 tokens

  Scenario: The stream tells what is left
    When I send the task "story" in the session "mine"
    And I read the stream of "story" to its end
    Then the metrics event of "story" tells "tokens_budget_remaining, time_budget_remaining_ms, cost_budget_remaining"

  Scenario: Who has spent everything is turned away
    When I send the task "story" in the session "mine" with
      | max_tokens | 100  |
      | ignore_end | true |
    And I read the stream of "story" to its end
    And I send the task "more" in the session "mine"
    Then it is refused as "ADMISSION_REJECT"
    And the refusal says that a retry is useless
    And the refusal names a policy
    And the metrics count 1 accepted task

  Scenario: A house that shows its proxies a full queue shows them no spent budget
    Given the setting overload_status is "503"
    When I send the task "story" in the session "mine" with
      | max_tokens | 100  |
      | ignore_end | true |
    And I read the stream of "story" to its end
    And I send the task "more" in the session "mine"
    Then it is refused as "ADMISSION_REJECT" with the status 429
    And the refusal says that a retry is useless

  Scenario: A budget is one session's own
    When I send the task "story" in the session "mine" with
      | max_tokens | 100  |
      | ignore_end | true |
    And I read the stream of "story" to its end
    And I send the task "other" in the session "yours"
    Then it is accepted

  Scenario: Two tasks cannot both spend the last token
    Given 1 task may run and 8 may wait
    When I send the task "first" in the session "mine" with
      | max_tokens | 80   |
      | ignore_end | true |
    And I send the task "second" in the session "mine" with
      | max_tokens | 80   |
      | ignore_end | true |
    And I send the task "third" in the session "mine"
    Then it is refused as "ADMISSION_REJECT"
    And the refusal names the policy "session-tokens-budget"
    When I read the stream of "first" to its end
    And I read the stream of "second" to its end
    Then the stream of "first" has 80 tokens
    And the stream of "second" has 20 tokens

  Scenario: The last token of a session is spent once, though two ask for it at the same time
    Given a session may spend 1 tokens, 60000 ms and 5 units of money
    When I send the tasks "one" and "other" at the same time, both in the session "mine", with
      | max_tokens | 40   |
      | ignore_end | true |
    Then one of "one" and "other" is accepted and gets 1 token, and the other is refused for the policy "session-tokens-budget"
    When I send the task "more" in the session "mine"
    Then it is refused as "ADMISSION_REJECT"
    And the refusal names the policy "session-tokens-budget"

  Scenario: Two tasks of a session that come at the same time share what is left, and not a token more
    Given a session may spend 60 tokens, 60000 ms and 5 units of money
    When I send the tasks "one" and "other" at the same time, both in the session "mine", with
      | max_tokens | 40   |
      | ignore_end | true |
    Then "one" and "other" are both accepted
    When I read the stream of "one" to its end
    And I read the stream of "other" to its end
    Then the streams of "one" and "other" have 60 tokens together

  Scenario: While a stream runs nothing is spent, and at its end exactly what it used
    Given a session may spend 2000 tokens, 60000 ms and 50 units of money
    When I send the long task "story" in the session "mine"
    And I open the stream of "story"
    And 5 tokens of "story" have arrived
    Then the session "mine" has spent nothing so far
    When I cancel "story"
    And I read the stream of "story" to its end
    Then the stream of "story" ends because of "canceled"
    And the session "mine" has spent what "story" used, to the unit
    When I send the task "next" in the session "mine"
    Then the answer to "next" tells to the unit what "story" has left

  Scenario: Answer, stream and session agree to the unit
    Given the setting metrics_interval_ms is "1"
    When I send the task "story" in the session "mine" with
      | max_tokens | 30   |
      | ignore_end | true |
    And I read the stream of "story" to its end
    And I ask for the session "mine"
    Then the last metrics event of "story" and the session "mine" agree on what is left
    When I send the task "next" in the session "mine"
    Then the answer to "next" and the session "mine" agree on what is left

  Scenario: Time runs out too, and ends a task where it is
    Given a session may spend 100000 tokens, 100 ms and 5000 units of money
    When I send the long task "endless" in the session "mine"
    And I read the stream of "endless" to its end
    Then the stream of "endless" ends because of "length"
    And the stream of "endless" has fewer than 1900 tokens
    When I send the task "more" in the session "mine"
    Then it is refused as "ADMISSION_REJECT"
    And the refusal names the policy "session-time-budget"

  @faults
  Scenario: The time that a prompt takes is spent as well, and none of it is left over
    Given a session may spend 100000 tokens, 100 ms and 5000 units of money
    And the engine needs 20 ms for every step
    And 1 task may run and 1 may wait
    And the setting step_rows_max is "4"
    When I send the task "wordy" in the session "mine" with
      | prompt | "One day a little dog ran to a big tree and saw one old cat who was in it, and the cat saw the dog, and they ran and ran to the big old house by the sea." |
    And I read the stream of "wordy" to its end
    Then the stream of "wordy" ends because of "length"
    And the stream of "wordy" has 0 tokens
    When I send the task "more" in the session "mine"
    Then it is refused as "ADMISSION_REJECT"
    And the refusal names the policy "session-time-budget"

  Scenario: Money runs out too
    Given a session may spend 100000 tokens, 60000 ms and 1 units of money
    And a token costs 0.05
    When I send the task "story" in the session "mine" with
      | max_tokens | 100  |
      | ignore_end | true |
    And I read the stream of "story" to its end
    Then the stream of "story" has 20 tokens
    When I send the task "more" in the session "mine"
    Then it is refused as "ADMISSION_REJECT"
    And the refusal names the policy "session-cost-budget"

  Scenario: Who has spent everything is told so even where the queue is full
    Given a session may spend 1900 tokens, 60000 ms and 5000 units of money
    And 1 task may run and 1 may wait
    When I send the long task "all of it" in the session "mine"
    And I open the stream of "all of it"
    And 2 tokens of "all of it" have arrived
    And I send the task "waits"
    And I send the task "late"
    Then the refusal names the policy "reject"
    When I send the task "more" in the session "mine"
    Then it is refused as "ADMISSION_REJECT"
    And the refusal names the policy "session-tokens-budget"

  Scenario: A key has a budget over all its sessions
    Given there are the keys "key-of-the-busy" and "key-of-the-other"
    And a key may spend 60 tokens, 0 ms and 0 units of money
    And my key is "key-of-the-busy"
    When I send the task "story" in the session "mine" with
      | max_tokens | 40   |
      | ignore_end | true |
    Then the budget of the answer is 60 tokens
    When I read the stream of "story" to its end
    And I send the task "other" in the session "yours" with
      | max_tokens | 40   |
      | ignore_end | true |
    Then the budget of the answer is 20 tokens
    When I read the stream of "other" to its end
    Then the stream of "other" has 20 tokens
    When I send the task "more" in the session "a third"
    Then it is refused as "ADMISSION_REJECT"
    And the refusal says that a retry is useless
    And the refusal names the policy "key-tokens-budget"
    When I go on with the key "key-of-the-other"
    And I send the task "somebody's" in the session "theirs"
    Then it is accepted

  Scenario: Two tasks that come at the same time share what their key has left, and not a token more
    Given a key may spend 60 tokens, 0 ms and 0 units of money
    When I send the tasks "one" and "other" at the same time, each in a session of its own, with
      | max_tokens | 40   |
      | ignore_end | true |
    Then "one" and "other" are both accepted
    When I read the stream of "one" to its end
    And I read the stream of "other" to its end
    Then the streams of "one" and "other" have 60 tokens together
    When I send the task "more" in the session "a third"
    Then it is refused as "ADMISSION_REJECT"
    And the refusal names the policy "key-tokens-budget"

  Scenario: The last token of a key is spent once, though two ask for it at the same time
    Given a key may spend 1 tokens, 0 ms and 0 units of money
    When I send the tasks "one" and "other" at the same time, each in a session of its own, with
      | max_tokens | 40   |
      | ignore_end | true |
    Then one of "one" and "other" is accepted and gets 1 token, and the other is refused for the policy "key-tokens-budget"
    When I send the task "more" in the session "a third"
    Then it is refused as "ADMISSION_REJECT"
    And the refusal names the policy "key-tokens-budget"

  Scenario: A key's time runs out over all its sessions, and ends a task where it is
    Given there are the keys "key-of-the-busy" and "key-of-the-other"
    And a session may spend 100000 tokens, 60000 ms and 5000 units of money
    And a key may spend 0 tokens, 100 ms and 0 units of money
    And my key is "key-of-the-busy"
    When I send the long task "endless" in the session "mine"
    And I read the stream of "endless" to its end
    Then the stream of "endless" ends because of "length"
    And the stream of "endless" has fewer than 1900 tokens
    When I send the task "more" in the session "yours"
    Then it is refused as "ADMISSION_REJECT"
    And the refusal says that a retry is useless
    And the refusal names the policy "key-time-budget"
    When I go on with the key "key-of-the-other"
    And I send the task "somebody's" in the session "theirs"
    Then it is accepted

  Scenario: A key's money is a budget as well
    Given a key may spend 0 tokens, 0 ms and 2 units of money
    And a token costs 0.1
    When I send the task "story" in the session "mine" with
      | max_tokens | 50   |
      | ignore_end | true |
    And I read the stream of "story" to its end
    Then the stream of "story" has 20 tokens
    When I send the task "more" in the session "yours"
    Then it is refused as "ADMISSION_REJECT"
    And the refusal names the policy "key-cost-budget"

  Scenario: Two doors, one budget
    Given the gateway is open
    And a key may spend 50 tokens, 0 ms and 0 units of money
    When I send the task "story" in the session "mine" with
      | max_tokens | 50   |
      | ignore_end | true |
    And I read the stream of "story" to its end
    And I chat "Hello!" at the gateway
    Then the gateway refuses it as "insufficient_quota" about nothing
    And a client's own retry is told not to come
