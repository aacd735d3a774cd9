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

  Scenario: A budget is one session's own
    When I send the task "story" in the session "mine" with
      | max_tokens | 100  |
      | ignore_end | true |
    And I read the stream of "story" to its end
    And I send the task "other" in the session "yours"
    Then it is accepted
