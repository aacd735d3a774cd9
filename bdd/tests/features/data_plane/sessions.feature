Feature: Sessions
  A session remembers how warm its memory is, how often it was used, and what it may still spend.

  Scenario: A session tells how it is
    Given a server
    When I send the task "story" in the session "mine"
    And I read the stream of "story" to its end
    And I ask for the session "mine"
    Then it is answered
    And the answer tells "ttl_ms_remaining, turns, kv_bytes, kv_warmth"
    And the answer tells "tokens_budget_remaining, time_budget_remaining_ms, cost_budget_remaining"

  Scenario: Every accepted task is a turn, a refused one is not
    Given a server
    When I send the task "first" in the session "mine"
    And I send the task "second" in the session "mine"
    And I send the task "wrong" in the session "mine" with
      | max_tokens | 0 |
    And I ask for the session "mine"
    Then the answer's "turns" is 2

  Scenario: A session that has worked is warm
    Given a server
    When I send the task "story" in the session "mine" with a prompt of 100 words
    And I read the stream of "story" to its end
    And I ask for the session "mine"
    Then the answer's "kv_bytes" is more than 0
    And the answer's "kv_warmth" is more than 0

  Scenario: A deleted session is gone
    Given a server
    When I send the task "story" in the session "mine"
    And I read the stream of "story" to its end
    And I delete the session "mine"
    Then it is done
    When I ask for the session "mine"
    Then it is refused as "NOT_FOUND"

  Scenario: A deleted session gives its memory back at once
    Given a server
    When I send the task "story" in the session "mine" with a prompt of 100 words
    And I read the stream of "story" to its end
    And I delete the session "mine"
    Then the metrics show "kv_cache_usage_ratio" at 0

  Scenario: A session that is not used goes cold and away
    Given a server
    And the setting session_ttl_ms is "300"
    When I send the task "story" in the session "mine"
    And I read the stream of "story" to its end
    Then the session "mine" is gone after a while

  Scenario: Nobody has heard of this session
    Given a server
    When I ask for the session "unheard of"
    Then it is refused as "NOT_FOUND"

  Scenario: A deleted session cannot be deleted again
    Given a server
    When I delete the session "unheard of"
    Then it is refused as "NOT_FOUND"
