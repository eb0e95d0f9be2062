-- months in which trips were landed that are neither among the enriched ones nor among the rejected
SELECT pickup_year, pickup_month, landed, kept, rejected
FROM (SELECT pickup_year, pickup_month, count(*) AS landed FROM yellow_trips GROUP BY ALL)
LEFT JOIN (SELECT pickup_year, pickup_month, count(*) AS kept FROM trips_enriched GROUP BY ALL) USING (pickup_year, pickup_month)
LEFT JOIN (SELECT pickup_year, pickup_month, count(*) AS rejected FROM trips_rejected GROUP BY ALL) USING (pickup_year, pickup_month)
WHERE landed <> coalesce(kept, 0) + coalesce(rejected, 0)
